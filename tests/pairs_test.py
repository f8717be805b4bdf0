"""What is particular to arms, midpoint and relaxed_disarm: the samples, the slopes, models."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf import estimators
from relax_tf.control_variates import QuadraticSlopes
from relax_tf.distributions import Bernoulli, OneHotCategorical
from relax_tf.estimators.arms import joint_over_single, sticks
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
from tests.suite import bias, per_example_gradients, repeated, total, while_learning

# Arms.


def test_arms_of_two_samples_is_disarm():
    dist = Bernoulli(3 * tf.random.stateless_normal([500, 4], [1, 2]), (-1, 1))
    cost = TableCost(4, (-1, 1), seed=1)
    arms, disarm = (
        estimators.get({"class_name": name, "config": config}).estimate(dist, cost, seed=5)
        for name, config in (("arms", {"num_samples": 2}), ("disarm", {}))
    )
    np.testing.assert_array_equal(arms.sample, disarm.sample)
    np.testing.assert_allclose(arms.gradient, disarm.gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("p", [0.03, 0.3, 0.5, 0.9])
def test_arms_samples_have_the_law_that_the_formula_takes_them_to_have(k, p):
    theta = np.log(p / (1 - p))
    dist = Bernoulli(repeated([theta], 200_000))
    b = estimators.Arms(num_samples=k).draw(dist, seed=0).b.numpy()[..., 0]
    assert np.abs(z_scores(b.T, p)).max() < 4
    r = min(p, 1 - p)
    joint = r * joint_over_single(tf.math.log(r), k).numpy()  # of the less frequent value
    rare = b if p < 0.5 else 1 - b
    for i, j in itertools.combinations(range(k), 2):
        assert abs(z_scores(rare[i] * rare[j], joint)) < 4
        assert np.corrcoef(rare[i], rare[j])[0, 1] < 0


def test_arms_one_hot_samples_have_the_right_law_and_repel_each_other():
    theta = [[0.0, 1.0, -1.0, 0.5], [2.0, 0.0, 0.0, -3.0]]
    dist = OneHotCategorical(repeated(theta, 100_000))
    b, z = estimators.Arms(num_samples=3).draw(dist, seed=0)
    np.testing.assert_array_equal(dist.harden(z), b)
    p = dist.mean()[0].numpy()
    for sample in b:
        assert np.abs(z_scores(sample, p)).max() < 4
    same = [tf.reduce_mean(tf.reduce_sum(b[i] * b[j], -1), 0) for i, j in ((0, 1), (1, 2), (0, 2))]
    assert (np.mean(same, 0) < np.sum(p**2, -1)).all()


def test_sticks_are_at_most_half_but_the_last():
    order, phi = sticks(tf.random.stateless_normal([100, 5], [1, 2]))
    assert (phi[..., :-1].numpy() <= 0.5).all() and (phi[..., -1].numpy() == 1).all()
    np.testing.assert_array_equal(tf.sort(order, -1), np.tile(range(5), [100, 1]))


@pytest.mark.parametrize("problem", [Smooth(6, (-1, 1), seed=1), CategoricalTableCost(3, 3)])
def test_arms_varies_less_than_independent_samples(problem):
    arms, rloo = (
        per_example_gradients(estimators.get(name), problem, 50_000).var(0).sum()
        for name in ("arms", "rloo")
    )
    assert arms < 0.9 * rloo


# Slopes at midpoints.


@pytest.mark.parametrize(
    "problem", [Jumps(3, (-1, 1), seed=1), Jumps(2, seed=2), CategoricalJumps(2, 3, seed=3)]
)
def test_midpoint_is_unbiased_whatever_the_derivative(problem):
    assert np.abs(bias("midpoint", problem, 200_000)[1]).max() < 4


def test_midpoint_leaves_a_quadratic_cost_no_noise_of_the_signs():
    """The estimate then is a function of which coordinates differ."""
    dist = Bernoulli(tf.random.stateless_normal([50, 4], [1, 2]))
    matrix = tf.random.stateless_normal([4, 4], [3, 4])
    cost = lambda b: total(tf.tensordot(b, matrix, 1) * b)  # noqa: E731
    estimate = estimators.get("midpoint").estimate(dist, cost, seed=0)
    m = tf.reduce_mean(estimate.sample, 0)
    slopes = m @ (matrix + tf.transpose(matrix))
    differ = tf.cast(m == 0.5, tf.float32)
    expected = 0.5 * tf.sigmoid(tf.abs(dist.theta)) * slopes * differ
    np.testing.assert_allclose(estimate.gradient, expected, rtol=1e-3, atol=1e-5)


def test_midpoint_evaluates_a_pair_and_its_midpoint():
    seen = []

    def cost(b):
        seen.append(b.numpy())
        return total(b) ** 2

    for dist in (Bernoulli(tf.zeros([5, 3]), (-1, 1)), OneHotCategorical(tf.zeros([5, 3]))):
        seen.clear()
        estimate = estimators.get("midpoint").estimate(dist, cost, seed=0)
        pair, midpoint = seen
        np.testing.assert_array_equal(pair, estimate.sample)
        np.testing.assert_array_equal(midpoint, pair.mean(0))
        assert estimate.cost.shape == [5]


@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
def test_midpoint_refuses_a_cost_without_a_derivative(family):
    black_box = lambda b: tf.stop_gradient(b[..., 0, 0])  # noqa: E731
    with pytest.raises(ValueError, match=r"no gradient.*'relaxed_disarm'.*'arms'.*'relax'"):
        estimators.get("midpoint").estimate(family(tf.zeros([2, 3, 2])), black_box)


def test_relaxed_disarm_starts_as_disarm():
    dist = Bernoulli(tf.random.stateless_normal([50, 4], [1, 2]))
    ours, theirs = (
        estimators.get(name).estimate(dist, TableCost(4), seed=5).gradient
        for name in ("relaxed_disarm", "disarm")
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_relaxed_disarm_is_defined_for_binary_variables():
    with pytest.raises(ValueError, match=r"relaxed_disarm.*Bernoulli.*OneHotCategorical.*'rloo'"):
        estimators.get("relaxed_disarm").estimate(OneHotCategorical(tf.zeros([2, 3])), total)


def test_relaxed_disarm_learns_the_slopes_of_a_black_box():
    """A cost in NumPy of a context: the second moment falls far below what it starts with."""
    x = tf.random.stateless_normal([256, 6], [1, 2])
    dist = Bernoulli(tf.zeros([256, 6]), (-1, 1))
    cost = lambda b: tf.numpy_function(  # noqa: E731
        lambda b, x: np.float32(100 + np.round(4 * ((b - x) ** 2).sum(-1))), [b, x], tf.float32
    )
    variances = while_learning(
        lambda estimate: tf.math.reduce_variance(estimate.gradient),
        estimators.get("relaxed_disarm"),
        dist,
        cost,
        context=x,
    )
    exact = relax_tf.diagnostics.exact_gradient
    problem = Bernoulli(dist.theta[:8], (-1, 1))
    numbers = exact(problem, lambda b: total((b - x[:8]) ** 2) * 4)
    assert np.mean(variances[-20:]) - np.var(numbers) < np.mean(variances[:3]) / 5


def test_relaxed_disarm_knows_a_quadratic_cost_as_midpoint_does():
    """With the cost's own Hessian, and its gradient at p, the slopes are the derivative."""
    theta = tf.random.stateless_normal([1, 4], [1, 2])
    hessian = tf.random.stateless_normal([4, 4], [3, 4])
    hessian += tf.transpose(hessian)
    dist = Bernoulli(tf.tile(theta, [50, 1]), (-1, 1))  # one p: r is a bias
    cost = lambda b: total(b @ hessian * b) / 2 + b[..., 0]  # noqa: E731
    learned, known = estimators.get("relaxed_disarm"), estimators.get("midpoint")
    learned.build(dist.theta.shape)
    slope = tf.linalg.matvec(hessian, dist.mean()[0]) + tf.one_hot(0, 4)
    unit = learned.unit(dist)
    learned.slopes.hessian.assign(hessian / (unit * 15))
    learned.slopes.first_order.output_layer.bias.assign(slope / (unit * 2))
    ours, theirs = (e.estimate(dist, cost, seed=5).gradient for e in (learned, known))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert np.abs(ours).max() > 0.1


def test_relaxed_disarm_learns_what_units_do_to_each_other():
    """A quadratic black box of units that are not fair coins: H learns, and variance goes."""
    dist = Bernoulli(tf.tile(tf.random.stateless_normal([1, 6], [1, 2]), [256, 1]))
    weights = tf.random.stateless_normal([6, 6], [3, 4])
    cost = lambda b: total(tf.stop_gradient(b @ weights * b))  # noqa: E731
    estimator = estimators.get("relaxed_disarm")

    def variance(estimate):
        return tf.reduce_sum(tf.math.reduce_variance(estimate.gradient, 0))

    def mean_variance():
        return np.mean([variance(estimator.estimate(dist, cost, seed=k)) for k in range(20)])

    variances = while_learning(variance, estimator, dist, cost)
    network = estimator.slopes
    network.first_order.set_weights([w * 0 for w in network.first_order.get_weights()])
    without_r = mean_variance()
    network.hessian.assign(network.hessian * 0)
    disarm = mean_variance()
    assert np.mean(variances[-20:]) < disarm / 2
    assert without_r < 0.9 * disarm


def test_relaxed_disarm_of_unknown_size_is_refused():
    with pytest.raises(ValueError, match="inputs of a fixed size"):
        estimators.get("relaxed_disarm").build((None, None, 3))


def test_relaxed_disarm_of_many_units_has_a_network_alone():
    few, many = (estimators.get("relaxed_disarm") for _ in range(2))
    few.build((None, 1_000), (None, 3))
    many.build((None, 1_001), (None, 3))
    assert few.count_params() > 1_000**2
    assert many.count_params() < 500 * 1_001


def test_relaxed_disarm_of_earlier_versions_has_a_network_alone():
    config = estimators.RelaxedDisarm(decay=0.9).get_config()
    assert config.pop("pairs") and config["slopes"] is None
    sizes = []
    for _ in range(2):  # and when it is saved again
        old = estimators.RelaxedDisarm.from_config(config)
        old.build((None, 7), (None, 3))
        sizes.append([tuple(v.shape) for v in old.trainable_variables])
        config = old.get_config()
    assert sizes[0] == sizes[1] == [(200, 7), (7,), (7, 200), (200,), (3, 200)]
    for written in ({"decay": 0.9}, {"slopes": None}):
        new = estimators.get({"class_name": "relaxed_disarm", "config": written})
        new.build((None, 7), (None, 3))
        assert (7, 7) in [tuple(v.shape) for v in new.trainable_variables]


def test_relaxed_disarm_takes_a_network_of_the_user_s_and_keeps_it():
    quadratic = estimators.RelaxedDisarm(slopes=QuadraticSlopes(3))
    again = estimators.deserialize(estimators.serialize(quadratic))
    assert again.get_config() == quadratic.get_config()
    network = keras.Sequential([keras.layers.Dense(5, "tanh"), keras.layers.Dense(3)])
    estimator = estimators.RelaxedDisarm(slopes=network, decay=0.9)
    dist = Bernoulli(tf.zeros([4, 3]))
    estimator.estimate(dist, total, context=tf.ones([4, 2]), seed=0)
    assert tuple(network.layers[0].kernel.shape) == (5, 5)
    again = estimators.deserialize(estimators.serialize(estimator))
    assert again.get_config() == estimator.get_config()
    with pytest.raises(TypeError, match=r"`slopes`.*Keras layer.*3"):
        estimators.RelaxedDisarm(slopes=3)


# Models.


@pytest.mark.parametrize(
    ("below", "above", "prior", "kl"),
    [
        ("midpoint", "relaxed_disarm", "learned", "analytic"),
        ("arms", "arms", "learned", "sampled"),
        *further(
            ("midpoint", "flip", "learned", "sampled"),
            ("flip", "midpoint", None, "analytic"),
            ("relaxed_disarm", "midpoint", "uniform", "sampled"),
        ),
    ],
)
def test_train_step_follows_the_enumerated_gradient_of_two_layers(below, above, prior, kl):
    model = two_layer_model(below, above, prior, kl)
    assert_follows(model, exact_gradients(model)[1])


@pytest.mark.parametrize(
    ("stack", "kl"),
    [
        ([(CATEGORICAL, "midpoint", "learned"), (BINARY, "midpoint", "learned")], "sampled"),
        ([(BINARY, "midpoint", "uniform"), (CATEGORICAL, "midpoint", None)], "analytic"),
        ([(CATEGORICAL, "arms", None), (NORMAL, "lax", "learned")], "sampled"),
    ],
)
def test_train_step_follows_the_exact_gradient_of_mixed_layers(stack, kl):
    model = mixed_model(*stack, kl=kl)
    with tf.GradientTape() as tape:
        loss = expected_loss(model)
    assert_follows(model, tape.gradient(loss, [v.value for v in model_variables(model)]))


@pytest.mark.parametrize("name", ["midpoint", *further("arms", "relaxed_disarm")])
@pytest.mark.uncertified
def test_layers_train_under_xla_in_half_precision(name):
    keras.config.set_dtype_policy("mixed_float16")
    inputs = keras.Input([3])
    b = relax_tf.StochasticBinaryLayer(4, name, (-1, 1), prior="learned", name="b")(inputs)
    if name != "relaxed_disarm":
        b = relax_tf.StochasticCategoricalLayer(3, 4, name, name="c")(b)
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(b))
    model = relax_tf.RelaxModel(inputs, outputs)
    model.compile("adam", loss="mse", jit_compile=True)
    history = model.fit(np.ones([8, 3], "f"), np.ones([8, 2], "f"), epochs=2, verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values())
