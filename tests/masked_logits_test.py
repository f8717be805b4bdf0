"""Infinite logits: impossible classes, as action masks make them, and sure values."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf import estimators
from relax_tf.distributions import Bernoulli, OneHotCategorical
from tests.further import further
from tests.problems import CategoricalTableCost, TableCost, shake, z_scores
from tests.suite import ALL, UNBIASED, by_problem, per_example_gradients, repeated, shaken

pytestmark = pytest.mark.uncertified

INF = np.inf

THETAS = {
    "bernoulli": np.array([[-INF, 0.3, INF, -1.0], [0.2, INF, -1e4, -INF]]),
    "categorical": np.array(
        [[[0.5, -INF, 1.0], [-1.0, 0.3, -INF]], [[-INF, -INF, -2.0], [1e4, -INF, -1e4]]]
    ),
}
FAMILIES = {
    "bernoulli": lambda theta: Bernoulli(theta, support=(-1, 1)),
    "categorical": OneHotCategorical,
}


def masked_problems():
    """Problems with some infinite logits, and the exact gradient with 1000 for infinity."""
    binary, categorical = TableCost(3, (-1, 1), seed=21), CategoricalTableCost(2, 3, seed=22)
    binary.theta[[0, 2]] = -INF, INF
    categorical.theta[0, 1] = categorical.theta[1, 0] = -INF
    for problem in (binary, categorical):
        exact = type(problem).gradient
        problem.gradient = lambda theta, p=problem, exact=exact: exact(p, np.clip(theta, -1e3, 1e3))
    return {"bernoulli": binary, "categorical": categorical}


@by_problem(UNBIASED, masked_problems())
def test_mean_equals_the_exact_gradient(config, other):
    estimator = shaken(config, other.distribution(repeated(other.theta, 2)))
    gradients = per_example_gradients(estimator, other, draws=50_000)
    exact = other.gradient(other.theta)
    assert np.abs(exact).max() > 0.05
    assert np.abs(z_scores(gradients, exact)).max() < 4
    np.testing.assert_array_equal(gradients[:, np.isinf(other.theta)], 0)


@by_problem(UNBIASED, masked_problems())
def test_the_cost_is_never_asked_about_the_impossible(config, other):
    """It is NaN there, as the logarithm of a probability that is 0 would be."""
    impossible = tf.constant(np.isneginf(other.theta), tf.float32)
    lowest = getattr(other, "support", (0, 1))[0]

    def cost(b):
        axes = list(range(b.shape.rank - impossible.shape.rank, b.shape.rank))
        taken = tf.reduce_any((impossible > 0) & (b > lowest), axes)
        return tf.where(taken, float("nan"), other(b))

    dist = other.distribution(repeated(other.theta, 500))
    estimate = shaken(config, dist).estimate(dist, cost, seed=0)
    assert np.isfinite(estimate.gradient).all()


@by_problem(ALL, {name: name for name in FAMILIES})
@pytest.mark.parametrize("dtype", ["float16", *further("float32")])
def test_everything_is_finite_and_samples_are_possible(config, other, dtype):
    values = THETAS[other] / (10 if dtype == "float16" else 1)
    theta, family = tf.constant(values, dtype), FAMILIES[other]
    event = list(range(1 - values.ndim, 0))
    total = lambda b: tf.reduce_sum(tf.sin(3 * b), event)  # noqa: E731
    estimator = estimators.get(config)
    estimator.estimate(family(theta), total, seed=0)
    shake(estimator.trainable_variables, 0.1)
    phi = [variable.value for variable in estimator.trainable_variables]

    def run(theta, seed):
        with tf.GradientTape() as tape:
            tape.watch(theta)
            estimate = estimator.estimate(family(theta), total, seed=seed)
            objective = estimate.surrogate + estimate.control_variate_loss
        return estimate, tape.gradient(objective, [theta, *phi])

    if dtype == "float32":
        run = tf.function(run, autograph=False)
    for seed in range(5):
        estimate, (to_theta, *to_phi) = run(theta, tf.constant([seed, 1]))
        for value in tf.nest.flatten([estimate, to_theta, to_phi]):
            assert np.isfinite(tf.cast(value, tf.float64)).all()
        for gradient in (to_theta, estimate.gradient):
            np.testing.assert_array_equal(gradient.numpy()[np.isinf(values)], 0)
        sample = estimate.sample.numpy()
        lowest = -1 if other == "bernoulli" else 0
        assert (sample[np.broadcast_to(values == -INF, sample.shape)] == lowest).all()
        assert (sample[np.broadcast_to(values == INF, sample.shape)] == 1).all()


@pytest.mark.parametrize("other", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_draws_and_relaxations_keep_to_what_is_possible(other, dtype):
    values = THETAS[other]
    dist = FAMILIES[other](tf.constant(values, dtype))
    b, z = dist.draw(seed=0, sample_shape=(5000,))
    lowest = -1 if other == "bernoulli" else 0
    for sample in (b, dist.relax(z, 100.0), dist.conditional_draw(b, 3), dist.mean()[tf.newaxis]):
        assert np.isfinite(sample).all()
    for sample in (b, dist.relax(z, 100.0), dist.mean()[tf.newaxis]):
        assert (sample.numpy()[:, values == -INF] == lowest).all()
        assert (sample.numpy()[:, values == INF] == 1).all()
    np.testing.assert_array_equal(dist.harden(dist.conditional_draw(b, 3)), b)
    assert np.abs(z.numpy()[:, np.isinf(values)]).max() < 1e4 + 2000  # a network can bear it


def test_information_of_impossible_classes():
    logits = tf.constant([[0.0, -INF, 0.0], [1.0, 2.0, -INF]])
    other = tf.constant([[0.3, -INF, 0.1], [0.0, -INF, 0.5]])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([logits, other])
        dist, prior = OneHotCategorical(logits), OneHotCategorical(other)
        log_prob = dist.log_prob(tf.one_hot([2, 1], 3))
        kl = dist.kl_divergence(prior)
        kl_of_first = kl[0]
    np.testing.assert_allclose(log_prob, [np.log(0.5), -np.log1p(np.exp(-1))], rtol=1e-5)
    q = np.exp([0.3, 0.1]) / np.exp([0.3, 0.1]).sum()
    np.testing.assert_allclose(kl[0], (0.5 * np.log(0.5 / q)).sum(), rtol=1e-5)
    assert kl[1] == INF  # the prior excludes the second class
    assert dist.log_prob(tf.one_hot([1, 2], 3)).numpy().tolist() == [-INF, -INF]
    gradients = tape.gradient(log_prob, [logits]) + tape.gradient(kl_of_first, [logits, other])
    for gradient, theta in zip(gradients, (logits, logits, other), strict=True):
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient.numpy()[np.isinf(theta)], 0)
        assert np.abs(gradient[0]).max() > 0
    assert np.isfinite(tape.gradient(kl, logits)).all()


def test_information_of_sure_values():
    logits = tf.constant([[-INF, 0.3], [INF, -1.0]])
    priors = tf.constant([[-INF, 0.0], [0.4, INF]])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([logits, priors])
        dist, prior = Bernoulli(logits), Bernoulli(priors)
        log_prob = dist.log_prob([[0.0, 1.0], [1.0, 0.0]])
        kl = dist.kl_divergence(prior)
        kl_of_first = kl[0]
    expected = tf.math.log_sigmoid([0.3, 1.0])
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5)
    p = tf.sigmoid(0.3).numpy()
    np.testing.assert_allclose(kl[0], p * np.log(2 * p) + (1 - p) * np.log(2 - 2 * p), rtol=1e-4)
    assert kl[1] == INF
    assert dist.log_prob([[1.0, 1.0], [0.0, 0.0]]).numpy().tolist() == [-INF, -INF]
    gradients = tape.gradient(log_prob, [logits]) + tape.gradient(kl_of_first, [logits, priors])
    for gradient, theta in zip(gradients, (logits, logits, priors), strict=True):
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient.numpy()[np.isinf(theta)], 0)
    sure = Bernoulli(logits).kl_divergence(Bernoulli(tf.constant([[1.0, 0.3], [1.0, -1.0]])))
    np.testing.assert_allclose(sure, [np.log1p(np.e), np.log1p(np.exp(-1))], rtol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_information_is_the_same_in_a_graph(kind, dtype):
    theta = tf.constant(THETAS[kind], dtype)

    def information(theta):
        dist, prior = FAMILIES[kind](theta), FAMILIES[kind](tf.zeros_like(theta))
        b, z = dist.draw(seed=0)
        values = (dist.log_prob(b), dist.kl_divergence(prior), dist.relax(z, 0.5))
        return *values, prior.kl_divergence(dist)

    *finite, infinite = tf.function(information, jit_compile=True)(theta)
    for value, eager in zip(finite, information(theta), strict=False):
        assert np.isfinite(eager).all()
        np.testing.assert_allclose(value, eager, rtol=1e-5, atol=1e-6)
    assert np.isinf(infinite).all()


def test_a_sure_value_is_recognised_in_any_support():
    dist = Bernoulli(tf.constant([[INF, -INF]]), support=(0.1, 0.7))
    assert dist.log_prob(dist.draw(seed=0).b) == dist.log_prob([[0.7, 0.1]]) == 0
    assert dist.log_prob([[0.1, 0.1]]) == -INF


def test_lowest_numbers_count_as_infinite():
    lowest = tf.float32.min
    dist = OneHotCategorical([[lowest, 0.0, 1.0]])
    expected = OneHotCategorical([[-INF, 0.0, 1.0]])
    np.testing.assert_array_equal(dist.theta, expected.theta)
    np.testing.assert_array_equal(dist.relax(dist.draw(0).z, 0.1)[:, 0], 0)


def test_a_variable_without_a_possible_class_is_refused():
    with pytest.raises(ValueError, match=r"all -inf for 1 of 2 variables"):
        OneHotCategorical([[[-INF, -INF], [0.0, -INF]]])


def test_undefined_logits_are_not_hidden():
    for dist in (Bernoulli([[np.nan]]), OneHotCategorical([[np.nan, 0.0]])):
        assert np.isnan(dist.draw(0).z).any()


IN_MODELS = {
    name: ALL[name]
    for name in ("relaxed_rebar", "relax", "muprop", "rloo", "straight_through", "concrete")
}


@by_problem(IN_MODELS, {name: name for name in FAMILIES})
def test_layers_train_with_masked_units(config, other):
    inputs = keras.Input([3])
    arguments = {"estimator": config, "prior": "learned", "name": "b"}
    bias = THETAS[other][0].ravel()
    if other == "bernoulli":
        layer = relax_tf.StochasticBinaryLayer(4, kl="sampled", **arguments)
    else:
        layer = relax_tf.StochasticCategoricalLayer(2, 3, kl="sampled", **arguments)
    hidden = keras.layers.Flatten()(layer(inputs))
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(1)(hidden))
    layer.bias.assign(bias)
    model.compile(keras.optimizers.Adam(0.01), loss="mse")
    before = layer.kernel.numpy()
    x, y = np.random.RandomState(0).normal(size=[2, 64, 3]).astype("float32")
    logs = model.fit(x, y[:, :1], batch_size=16, epochs=2, verbose=0).history
    assert np.isfinite([logs[key] for key in logs]).all()
    for variable in model.variables:
        finite = ~np.isinf(bias) if variable is layer.bias else ...
        assert np.isfinite(variable.numpy()[finite]).all(), variable.path
    moved = (layer.kernel.numpy() != before).any(0)
    np.testing.assert_array_equal(moved[np.isinf(bias)], False)
    assert moved[~np.isinf(bias)].all()
    np.testing.assert_array_equal(layer.bias.numpy()[np.isinf(bias)], bias[np.isinf(bias)])
    assert np.isfinite(model.predict(x, verbose=0)).all()


@pytest.mark.parametrize(
    ("number", "estimator"),
    [
        (-1e9, "relaxed_rebar"),
        (-1e9, "nvil"),
        (-3.4e38, "relax"),
        (-65504.0, "relaxed_rebar"),
        (-65504.0, "relaxed_disarm"),
    ],
)
def test_large_numbers_in_place_of_infinity_are_masks(estimator, number):
    """They reached the networks, whose second moments were 1e14."""
    second_moments = []
    for masked in (-INF, number):
        keras.utils.set_random_seed(0)
        inputs = keras.Input([4])
        logits = keras.ops.where(inputs > 1, masked, keras.layers.Dense(4)(inputs))
        b = relax_tf.StochasticBinaryLayer(None, estimator, name="b")(logits)
        model = relax_tf.RelaxModel(inputs, keras.layers.Dense(1)(b))
        model.compile("sgd", loss="mse")
        x = np.random.RandomState(0).normal(size=[16, 4]).astype("f")
        assert (x > 1).any()
        shake(model.get_layer("b").estimator.trainable_variables)
        estimate = model.estimate(x, x[:, :1]).estimates["b"]
        second_moments.append(estimate.second_moment)
    np.testing.assert_array_equal(*second_moments)


class Simulated(relax_tf.RelaxModel):
    """A simulator that raises on what the mask forbids."""

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        def simulate(forbidden, action):
            if (forbidden * action).sum() > 0:
                raise ValueError("illegal move")
            return (action * np.arange(4, dtype="f")).sum(-1)

        return tf.numpy_function(simulate, [x[1], tf.reshape(y_pred, [-1, 4])], tf.float32)


@pytest.mark.parametrize("estimator", ["relax", "rloo", "arms"])
@pytest.mark.parametrize("kind", ["one-hot", "binary"])
def test_the_certificate_makes_no_samples_that_a_mask_forbids(kind, estimator):
    x = np.random.RandomState(0).normal(size=[16, 3]).astype("f")
    mask = np.zeros([16, 4], "f")
    mask[:, 1] = mask[::2, 3] = 1
    inputs = keras.Input([3]), keras.Input([4])
    logits = keras.ops.where(inputs[1] > 0, -INF, 3e3 + keras.layers.Dense(4)(inputs[0]))
    if kind == "binary":
        b = relax_tf.StochasticBinaryLayer(None, estimator, name="b")(logits)
    else:
        layer = relax_tf.StochasticCategoricalLayer(None, None, estimator, name="b")
        b = layer(keras.layers.Reshape([1, 4])(logits))
    model = Simulated(inputs, b)
    model.compile("adam")
    model.certify = True
    model.fit([x, mask], verbose=0)
