"""What is particular to reinmax and flip: exactness, what flip asks of a cost, models."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf import diagnostics, estimators
from relax_tf.distributions import Bernoulli, OneHotCategorical, noise
from tests.further import further
from tests.problems import (
    CategoricalJumps,
    CategoricalTableCost,
    Jumps,
    Smooth,
    TableCost,
    z_scores,
)
from tests.stacks import (
    BINARY,
    CATEGORICAL,
    NORMAL,
    assert_follows,
    exact_gradients,
    expected_loss,
    mixed_model,
    model_variables,
    two_layer_model,
)
from tests.suite import bias, per_example_gradients, repeated, total

# Reinmax.


@pytest.mark.parametrize(
    "problem",
    [TableCost(1, (-2, 3), seed=0), TableCost(4, (-1, 1), seed=1), TableCost(5, direct=True)],
)
def test_reinmax_is_exact_for_costs_that_are_quadratic_in_each_coordinate(problem):
    """`TableCost` is the square of a multilinear function, with products of all coordinates."""
    assert np.abs(bias("reinmax", problem)[1]).max() < 4


def test_reinmax_is_exact_for_categorical_variables_and_quadratic_costs():
    class Quadratic(CategoricalTableCost):
        def __call__(self, b, theta=None):
            matrix = tf.constant(np.random.RandomState(1).normal(size=[6, 6]), b.dtype)
            flat = tf.reshape(b, tf.concat([tf.shape(b)[:-2], [6]], 0))
            return tf.reduce_sum(tf.tensordot(flat, matrix, 1) * flat, -1)

    assert np.abs(bias("reinmax", Quadratic(2, 3, seed=1))[1]).max() < 4


def test_reinmax_s_bias_is_small_for_smooth_costs_and_large_for_oscillating_ones():
    def biases(problem):
        return (
            np.abs(bias(name, problem)[0]).max()
            for name in ("reinmax", estimators.StraightThrough(temperature=1.0))
        )

    reinmax, straight_through = biases(Smooth(3, (-1, 1), seed=2))
    assert reinmax < straight_through / 2
    reinmax, straight_through = biases(TableCost(3, seed=1, wave=0.3))
    assert reinmax > straight_through


def test_reinmax_trains_in_a_plain_keras_model():
    inputs = keras.Input([3])
    b = relax_tf.StochasticBinaryLayer(8, "reinmax", (-1, 1), name="b")(inputs)
    b = relax_tf.StochasticCategoricalLayer(4, 3, "reinmax", name="c")(b)
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(b))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.03), loss="mse")
    random = np.random.RandomState(0)
    x = np.sign(random.normal(size=[256, 3])).astype("f")
    y = x[:, :2] * x[:, 1:]
    losses = model.fit(x, y, epochs=60, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 2


def test_reinmax_is_backpropagation_in_a_model_and_the_function_elsewhere():
    """The layer's z carries the formula to theta; the function applies it to `df/db`."""
    dist = Bernoulli(tf.random.stateless_normal([5, 4], [1, 2]), support=(-1, 3))
    draw = dist.draw(seed=1)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([dist.theta, draw.b])
        eps = tf.stop_gradient(draw.z - dist.theta)
        sample = estimators.get("reinmax").emit(dist, dist.from_noise(eps))
        cost = tf.reduce_sum(tf.sin(sample), -1)
    p = tf.sigmoid(dist.theta)
    expected = 0.5 * tf.abs(dist.indicator(draw.b) - p) * 4 * tf.cos(draw.b)
    np.testing.assert_allclose(tape.gradient(cost, dist.theta), expected, rtol=1e-5)
    estimate = estimators.get("reinmax").estimate(dist, lambda b: total(tf.sin(b)), draw=draw)
    np.testing.assert_allclose(estimate.gradient, expected, rtol=1e-5)


# Neighbours.


def test_one_of_draws_with_the_probabilities():
    p = np.array([0.5, 0.0, 0.3, 1e-3, 0.199], np.float32)
    chosen = noise.one_of(repeated(p, 100_000), tf.constant([1, 2])).numpy()
    np.testing.assert_array_equal(chosen.sum(-1), np.ones(100_000))
    assert chosen[:, 1].sum() == 0
    assert np.abs(z_scores(chosen, p)).max() < 4


def test_mostly_proportional():
    q = noise.mostly_proportional(tf.constant([[1.0, 3.0], [0.0, 0.0]]))
    np.testing.assert_allclose(q, [[0.05 + 0.225, 0.05 + 0.675], [0.5, 0.5]])


@pytest.mark.parametrize("support", [(0, 1), (-1, 1), (0.1, 0.7)])
def test_neighbours_of_binary_samples_differ_in_one_coordinate(support):
    dist = Bernoulli(tf.random.stateless_normal([1000, 2, 3], [1, 2]), support)
    b = dist.draw(seed=0).b
    neighbour, weight = dist.neighbour(b, seed=1)
    assert (tf.reduce_sum(tf.cast(b != neighbour, tf.int32), [1, 2]) == 1).numpy().all()
    assert set(np.unique(neighbour)) == set(np.unique(b))
    assert (weight > 0).numpy().all()


def test_neighbours_of_one_hot_samples_differ_in_one_variable():
    dist = OneHotCategorical(tf.random.stateless_normal([1000, 2, 3, 4], [1, 2]))
    b = dist.draw(seed=0).b
    neighbour, _ = dist.neighbour(b, seed=1)
    np.testing.assert_array_equal(tf.reduce_sum(neighbour, -1), np.ones([1000, 2, 3]))
    assert (tf.reduce_sum(tf.abs(b - neighbour), [1, 2, 3]) == 2).numpy().all()


def test_neighbours_of_excluded_classes_are_finite():
    dist = OneHotCategorical(tf.constant([[[0.0, -np.inf, 1.0]], [[-np.inf, -np.inf, 0.0]]]))
    b = dist.draw(seed=0).b
    neighbour, weight = dist.neighbour(b, seed=1)
    assert np.isfinite(neighbour).all() and np.isfinite(weight).all()
    assert neighbour[0, 0, 1] == 0 and weight[1] == 0


# Flip.


@pytest.mark.parametrize(
    "problem", [Jumps(3, (-1, 1), seed=1), Jumps(2, seed=2), CategoricalJumps(2, 3, seed=3)]
)
def test_flip_is_unbiased_whatever_the_derivative(problem):
    assert np.abs(bias("flip", problem, 200_000)[1]).max() < 4
    assert np.abs(bias("reinmax", problem)[1]).max() > 10


def test_flip_ignores_slopes_that_are_not_finite():
    class Root(TableCost):
        def __call__(self, b, theta=None):
            return tf.reduce_sum(tf.sqrt(b), -1) * tf.reduce_sum(b, -1)

    assert np.abs(bias("flip", Root(3, seed=1))[1]).max() < 4


def test_flip_varies_less_than_disarm():
    problem = Smooth(12, (-1, 1), seed=3)
    flip, disarm = (
        per_example_gradients(estimators.get(name), problem, 20_000).var(0).sum()
        for name in ("flip", "disarm")
    )
    assert flip < disarm / 5


def test_flip_evaluates_the_cost_twice_at_hard_samples_of_the_batch():
    seen = []

    def cost(b):
        seen.append(b.numpy())
        return total(b) ** 2

    dist = Bernoulli(tf.zeros([5, 3]), (-1, 1))
    estimate = estimators.get("flip").estimate(dist, cost, seed=0)
    b, neighbour = seen
    np.testing.assert_array_equal(b, estimate.sample)
    np.testing.assert_array_equal((b != neighbour).sum(-1), np.ones(5))
    np.testing.assert_array_equal(np.abs(neighbour), np.ones([5, 3]))


@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
def test_flip_refuses_a_cost_without_a_derivative(family):
    black_box = lambda b: tf.stop_gradient(b[:, 0, 0])  # noqa: E731
    with pytest.raises(ValueError, match=r"no gradient.*'relaxed_disarm'.*'relax'"):
        estimators.get("flip").estimate(family(tf.zeros([2, 3, 2])), black_box)


# The curvature that flip learns.


@pytest.mark.parametrize("classes", [False, True])
def test_flip_starts_as_reinmax_and_its_correction(classes):
    """Before it has learned anything, units that are decided rely on the curvature, others not."""
    estimator = estimators.get("flip")
    theta = tf.constant([[-8.0, 1.0] + 50 * [-1.0], [-8.0] + 51 * [-9.0]])
    dist = OneHotCategorical(tf.stack([0 * theta, theta], -1)) if classes else Bernoulli(theta)
    estimator.estimate(dist, lambda b: total(b[:, :5], b.shape.rank - 1) ** 2, seed=0)
    share = estimator.share(dist).numpy()
    assert share.shape == ((2, 52, 1) if classes else (2, 52))
    assert (share >= 0).all() and (share <= 1).all()
    assert np.median(share[0]) < 0.5 < share[1].min()


FAMILIES = {
    "bernoulli": lambda theta: Bernoulli(theta[..., 0], (-1, 1)),
    "one-hot": OneHotCategorical,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_no_noise_is_left_where_the_curvature_is_known(family):
    """Of a cost without products of coordinates, whatever b is drawn."""
    dist = FAMILIES[family](tf.repeat(2 * tf.random.stateless_normal([1, 3, 4], [1, 2]), 50, 0))
    slope, curvature = tf.random.stateless_normal([2, *dist.shape[1:]], [3, 4])

    def cost(b):
        return total(slope * b + 0.5 * curvature * b**2, dist.shape.rank - 1)

    b = dist.draw(seed=0).b
    width = 2 if family == "bernoulli" else 1
    estimate = dist.curved_vjp(b, slope + curvature * b, width**2 * curvature)
    np.testing.assert_allclose(estimate, diagnostics.exact_gradient(dist, cost), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_flip_learns_the_curvature_and_varies_less(family):
    dist = FAMILIES[family](2 * tf.random.stateless_normal([500, 6, 3], [1, 2]))
    axes = dist.shape.rank - 1
    size = dist.shape[1:].num_elements()
    matrix = tf.random.stateless_normal([size, size], [3, 4])

    def cost(b):
        flat = tf.reshape(b, tf.concat([tf.shape(b)[: b.shape.rank - axes], [size]], 0))
        linear = total(flat[..., ::2])
        return total(tf.tensordot(flat, matrix, 1) * flat) + 3 * linear**2 + 0.1 * linear**3

    learned, plain = estimators.get("flip"), estimators.Flip(curvature=False)
    optimizer = keras.optimizers.Adam(1e-2)

    @tf.function(jit_compile=True, autograph=False)
    def step(seed):
        with tf.GradientTape() as tape:
            estimate = learned.estimate(dist, cost, seed=seed)
        optimizer.apply(tape.gradient(estimate.control_variate_loss, phi), phi)

    learned.estimate(dist, cost, seed=0)
    phi = learned.trainable_variables
    optimizer.build(phi)
    for seed in range(400):
        step(tf.constant([7, seed]))
    exact = diagnostics.exact_gradient(dist, cost)

    def error(estimator):
        estimates = [estimator.estimate(dist, cost, seed=seed).gradient for seed in range(20)]
        return np.mean((np.stack(estimates) - exact) ** 2)

    assert error(learned) < 0.7 * error(plain)


@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
def test_flip_has_nothing_to_learn_by_choice(family):
    dist = family(tf.zeros([2, 3]))
    estimator = estimators.Flip(curvature=False)
    assert float(estimator.estimate(dist, total).control_variate_loss) == 0
    assert estimator.variables == estimator.past.variables
    again = estimators.deserialize(estimators.serialize(estimator))
    assert again.trainable_variables == []


def test_flip_takes_a_network_of_the_user_s_and_keeps_it():
    network = keras.Sequential([keras.layers.Dense(5, "tanh"), keras.layers.Dense(3)])
    estimator = estimators.Flip(curvature=network, decay=0.9)
    estimator.estimate(Bernoulli(tf.zeros([4, 3])), total, context=tf.ones([4, 2]), seed=0)
    assert len(estimator.trainable_variables) == 7
    again = estimators.deserialize(estimators.serialize(estimator))
    assert again.get_config() == estimator.get_config()
    assert len(again.trainable_variables) == 7
    with pytest.raises(TypeError, match=r"`curvature`.*Keras layer.*3"):
        estimators.Flip(curvature=3)


# Models.


@pytest.mark.parametrize(
    ("below", "above", "prior", "kl"),
    [
        ("flip", "flip", "learned", "sampled"),
        ("relaxed_rebar", "flip", "uniform", "sampled"),
        *further(("flip", "rebar", None, "analytic"), ("rloo", "flip", "learned", "analytic")),
    ],
)
def test_train_step_follows_the_enumerated_gradient_of_two_layers(below, above, prior, kl):
    """b1 reaches the outputs through b2 and beside it."""
    model = two_layer_model(below, above, prior, kl)
    assert_follows(model, exact_gradients(model)[1])


@pytest.mark.parametrize(
    ("stack", "kl"),
    [
        ([(CATEGORICAL, "flip", "learned"), (BINARY, "flip", "learned")], "sampled"),
        ([(CATEGORICAL, "flip", None), (NORMAL, "reparameterization", "standard")], "analytic"),
        *further(
            ([(BINARY, "flip", "uniform"), (CATEGORICAL, "flip", None)], "analytic"),
            ([(BINARY, "flip", None), (NORMAL, "lax", "learned")], "sampled"),
        ),
    ],
)
def test_train_step_follows_the_exact_gradient_of_mixed_layers(stack, kl):
    model = mixed_model(*stack, kl=kl, scale=0.4)  # the quadrature is exact enough then
    variables = model_variables(model)
    with tf.GradientTape() as tape:
        loss = expected_loss(model)
    assert_follows(model, tape.gradient(loss, [v.value for v in variables]))


@pytest.mark.parametrize(
    "estimator", [relax_tf.estimators.Flip(curvature=False), "midpoint"], ids=["flip", "midpoint"]
)
def test_slopes_do_not_lead_through_discrete_samples_downstream(estimator):
    """A cost of `b1` alone has the slope 0 in `b0`, and is estimated from differences."""
    inputs = keras.Input([3])
    b0 = relax_tf.StochasticBinaryLayer(4, estimator, (-1, 1), name="b0")(inputs)
    b1 = relax_tf.StochasticBinaryLayer(3, "disarm", (-1, 1), name="b1")(b0)
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(2)(b1))
    model.compile("sgd", loss="mse")
    x, y = np.ones([8, 3], "f"), np.ones([8, 2], "f")
    b0 = model.estimate(x, y).estimates["b0"]
    differ = 1 if b0.sample.shape.rank == 2 else np.sum(b0.sample[0] != b0.sample[1], -1)
    assert ((b0.gradient.numpy() != 0).sum(-1) <= differ).all() and np.any(b0.gradient)


def test_slopes_lead_through_continuous_samples_downstream():
    """A linear cost of `z`, whose mean is linear in `b0`: the slope foretells every difference."""
    inputs = keras.Input([3])
    b0 = relax_tf.StochasticBinaryLayer(4, "flip", (-1, 1), name="b0")(inputs)
    z = keras.layers.Dense(1)(relax_tf.StochasticNormalLayer(2, "lax", name="z")(b0))
    model = relax_tf.RelaxModel(inputs, z)
    model.compile("sgd", loss=lambda y, p: y + p)
    x = np.ones([8, 3], "f")
    gradient = model.estimate(x, x[:, :1]).estimates["b0"].gradient.numpy()
    assert (gradient != 0).all()


@pytest.mark.parametrize(
    ("mode", "policy"),
    [
        ({"run_eagerly": True}, "mixed_float16"),
        ({"run_eagerly": True}, "float64"),
        *further(({"jit_compile": True}, "mixed_float16")),
    ],
)
@pytest.mark.uncertified
def test_layers_train_in_every_mode_and_precision(mode, policy):
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input([3])
    b = relax_tf.StochasticBinaryLayer(4, "flip", (-1, 1), prior="learned", name="b")(inputs)
    c = relax_tf.StochasticCategoricalLayer(3, 4, "flip", name="c")(b)
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(c))
    model = relax_tf.RelaxModel(inputs, outputs)
    model.compile("adam", loss="mse", **mode)
    history = model.fit(np.ones([8, 3], "f"), np.ones([8, 2], "f"), epochs=2, verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values())


@pytest.mark.parametrize("name", ["flip", "arms", *further("relaxed_disarm", "midpoint")])
@pytest.mark.uncertified
def test_saved_models_continue_as_the_original_would(name, tmp_path):
    inputs = keras.Input([3])
    b = relax_tf.StochasticBinaryLayer(4, name, (-1, 1), prior="learned", name="b")(inputs)
    if name != "relaxed_disarm":
        b = relax_tf.StochasticCategoricalLayer(2, 3, name, name="c")(b)
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(b)))
    model.compile("adam", loss="mse", run_eagerly=True)
    x, y = np.ones([8, 3], "f"), np.ones([8, 2], "f")
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        each.fit(x, y, epochs=2, shuffle=False, verbose=0)
    for mine, theirs in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
