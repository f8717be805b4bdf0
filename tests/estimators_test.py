"""The suite that every estimator passes: exact enumeration, execution modes, extremes, leaks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from relax_tf import estimators
from relax_tf.distributions import Bernoulli
from tests.problems import TableCost, shake, z_scores

DRAWS = 200_000

UNBIASED = {
    "reinforce": {"class_name": "reinforce"},
    "rebar": {"class_name": "rebar"},
    "rebar-independent": {"class_name": "rebar", "config": {"coupled": False}},
    "relax": {"class_name": "relax"},
    "relax-independent": {"class_name": "relax", "config": {"coupled": False}},
    "relaxed_rebar": {"class_name": "relaxed_rebar"},
    "relaxed_rebar-independent": {"class_name": "relaxed_rebar", "config": {"coupled": False}},
}
BIASED = {
    "concrete": {"class_name": "concrete"},
    "straight_through": {"class_name": "straight_through"},
}
ALL = UNBIASED | BIASED

# units, support, whether the cost depends on theta directly
PROBLEMS = [
    (1, (0, 1), False),
    (1, (-1, 1), True),
    (2, (-1, 1), False),
    (3, (0, 1), True),
    (4, (-2, 3), False),
    (6, (-1, 1), True),
]


def by_name(configs):
    return pytest.mark.parametrize("config", configs.values(), ids=configs.keys())


def total(b):
    """The sum of each example's sample, `[batch]`."""
    return tf.reduce_sum(b, list(range(1, b.shape.rank)))


def shaken(config, theta, context=None):
    """A built estimator whose variables are not at their initial values."""
    estimator = estimators.get(config)
    estimator.estimate(Bernoulli(theta), total, context=context, seed=0)
    shake(estimator.trainable_variables)
    return estimator


def per_example_gradients(estimator, cost, theta, support, draws=DRAWS, seed=1):
    """The surrogate's gradient, direct term included, for each of many draws: `[draws, units]`."""
    thetas = tf.tile(tf.constant(theta, tf.float32)[tf.newaxis], [draws, 1])

    @tf.function(jit_compile=True)
    def gradients(thetas):
        with tf.GradientTape() as tape:
            tape.watch(thetas)
            dist = Bernoulli(thetas, support)
            estimate = estimator.estimate(dist, lambda b: cost(b, thetas), seed=seed)
        return tape.gradient(estimate.surrogate, thetas) * draws

    return gradients(thetas).numpy()


@by_name(UNBIASED)
@pytest.mark.parametrize("problem", range(len(PROBLEMS)))
def test_mean_equals_the_enumerated_gradient(config, problem):
    units, support, direct = PROBLEMS[problem]
    cost = TableCost(units, support, direct, seed=problem)
    theta = np.random.RandomState(problem).normal(size=units)
    estimator = shaken(config, tf.zeros([2, units]))
    assert estimator.unbiased
    gradients = per_example_gradients(estimator, cost, theta, support)
    assert np.abs(z_scores(gradients, cost.gradient(theta))).max() < 4


@by_name(BIASED)
def test_biased_estimators_are_biased_and_say_so(config):
    cost = TableCost(3, seed=1)
    theta = np.random.RandomState(1).normal(size=3)
    estimator = shaken(config, tf.zeros([2, 3]))
    assert not estimator.unbiased
    gradients = per_example_gradients(estimator, cost, theta, (0, 1), draws=20_000)
    assert np.abs(z_scores(gradients, cost.gradient(theta))).max() > 10


@by_name({key: value for key, value in UNBIASED.items() if "rela" in key})
def test_control_variate_with_context_is_unbiased(config):
    cost = TableCost(2, seed=5)
    theta = np.array([0.3, -0.8])
    context = tf.random.stateless_normal([DRAWS, 4], [1, 2])
    estimator = shaken(config, tf.zeros([2, 2]), context=context[:2])
    dist = Bernoulli(tf.tile(tf.constant(theta, tf.float32)[tf.newaxis], [DRAWS, 1]))
    gradient = estimator.estimate(dist, cost, context=context, seed=3).gradient
    assert np.abs(z_scores(gradient, cost.gradient(theta))).max() < 4


@by_name(ALL)
def test_theta_may_be_a_scalar_or_a_matrix_per_example(config):
    for event in ([], [2, 3]):
        theta = tf.random.stateless_normal([5, *event], [1, 2])
        estimator = shaken(config, theta)
        estimate = estimator.estimate(Bernoulli(theta), lambda b: total(b**2), seed=0)
        assert estimate.gradient.shape == theta.shape
        assert estimate.cost.shape == [5]


@by_name(ALL)
def test_eager_graph_and_xla_agree(config):
    theta = tf.random.stateless_normal([7, 3], [1, 2])
    estimator = shaken(config, theta)
    cost = TableCost(3, seed=2)

    def run(theta):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(theta)
            estimate = estimator.estimate(Bernoulli(theta), cost, seed=4)
        variables = estimator.trainable_variables
        return (
            estimate,
            tape.gradient(estimate.surrogate, theta),
            tape.gradient(estimate.control_variate_loss, variables) if variables else [],
        )

    eager = run(theta)
    for jit_compile in (False, True):
        compiled = tf.function(run, jit_compile=jit_compile)(theta)
        for a, b in zip(tf.nest.flatten(eager), tf.nest.flatten(compiled), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@by_name(ALL)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_extreme_logits_stay_finite(config, dtype):
    logits = [-1e4, -200.0, -1.0, 0.0, 1.0, 200.0, 1e4]
    theta = tf.cast([logits, logits[::-1]], dtype)
    estimator = estimators.get(config)
    estimator.estimate(Bernoulli(theta), total, seed=0)
    shake(estimator.trainable_variables, 0.1)
    for seed in range(20):
        with tf.GradientTape() as tape:
            tape.watch(theta)
            dist = Bernoulli(theta)
            estimate = estimator.estimate(dist, lambda b: total((b - 0.4) ** 2), seed=seed)
            objective = estimate.surrogate + estimate.control_variate_loss
        gradients = tape.gradient(
            objective, [theta, *(v.value for v in estimator.trainable_variables)]
        )
        assert estimate.gradient.dtype == (tf.float64 if dtype == "float64" else tf.float32)
        for value in tf.nest.flatten([estimate, gradients]):
            assert bool(tf.reduce_all(tf.math.is_finite(tf.cast(value, tf.float32))))


@by_name(ALL)
def test_gradients_reach_what_they_should_and_nothing_else(config):
    weight = tf.Variable(0.3)  # of the model, in the cost
    matrix = tf.Variable(tf.random.stateless_normal([4, 3], [1, 2]))
    x = tf.random.stateless_normal([6, 4], [3, 4])
    estimator = estimators.get(config)
    with tf.GradientTape(persistent=True) as tape:
        dist = Bernoulli(x @ matrix)
        cost = lambda b: total((b - weight) ** 2)  # noqa: E731
        estimate = estimator.estimate(dist, cost, context=x @ matrix, seed=0)
    phi = [variable.value for variable in estimator.trainable_variables]

    assert all(g is not None for g in tape.gradient(estimate.control_variate_loss, phi))
    assert tape.gradient(estimate.control_variate_loss, [weight, matrix]) == [None, None]
    assert tape.gradient(estimate.second_moment, [weight, matrix, *phi]) == [None] * (2 + len(phi))
    assert tape.gradient(estimate.gradient, [weight, matrix, *phi]) == [None] * (2 + len(phi))
    assert tape.gradient(estimate.surrogate, phi) == [None] * len(phi)
    to_weight, to_matrix = tape.gradient(estimate.surrogate, [weight, matrix])
    np.testing.assert_allclose(
        to_matrix, tf.transpose(x) @ estimate.gradient / 6, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        to_weight, tf.reduce_mean(tf.reduce_sum(2 * (weight - estimate.sample), -1)), rtol=1e-5
    )


@by_name({key: value for key, value in UNBIASED.items() if key != "reinforce"})
def test_control_variate_gradient_is_the_derivative_of_the_second_moment(config):
    keras.config.set_floatx("float64")
    cost = TableCost(3, seed=3)
    theta = tf.random.stateless_normal([50, 3], [1, 2], dtype=tf.float64)
    dist = Bernoulli(theta)
    estimator = estimators.get(config)
    estimator.estimate(dist, cost, seed=0)
    shake(estimator.trainable_variables)
    with tf.GradientTape() as tape:
        loss = estimator.estimate(dist, cost, seed=1).control_variate_loss
    gradients = tape.gradient(loss, [v.value for v in estimator.trainable_variables])
    step = 1e-6
    for variable, gradient in zip(estimator.trainable_variables, gradients, strict=True):
        direction = np.random.RandomState(0).normal(size=variable.shape)
        value = variable.numpy()
        moments = []
        for sign in (1, -1):
            variable.assign(value + sign * step * direction)
            moments.append(estimator.estimate(dist, cost, seed=1).second_moment.numpy())
        variable.assign(value)
        numeric = (moments[0] - moments[1]) / (2 * step)
        np.testing.assert_allclose(np.sum(gradient * direction), numeric, rtol=1e-4, atol=1e-7)


@by_name(ALL)
def test_estimate_is_consistent(config):
    theta = tf.random.stateless_normal([9, 4], [1, 2])
    dist = Bernoulli(theta, support=(-1, 1))
    estimator = shaken(config, theta)
    draw = dist.draw(seed=7)
    estimate = estimator.estimate(dist, lambda b: total(b) ** 2, draw=draw, seed=3)
    np.testing.assert_allclose(estimate.cost, total(estimate.sample) ** 2, rtol=1e-6)
    np.testing.assert_allclose(estimate.surrogate, np.mean(estimate.cost), rtol=1e-6)
    moment = np.mean(np.sum(np.square(estimate.gradient), -1))
    np.testing.assert_allclose(estimate.second_moment, moment, rtol=1e-5)
    if estimator.hard:
        np.testing.assert_array_equal(estimate.sample, draw.b)


@by_name(ALL)
def test_seed_and_draw_decide_the_noise(config):
    theta = tf.zeros([4, 5])
    dist = Bernoulli(theta)
    estimator = shaken(config, theta)
    sample = lambda **kwargs: estimator.estimate(dist, total, **kwargs).sample.numpy()  # noqa: E731
    np.testing.assert_array_equal(sample(seed=1), sample(seed=1))
    assert (sample(seed=1) != sample(seed=2)).any()
    assert (sample() != sample()).any()
    fresh = tf.function(lambda: estimator.estimate(dist, total).sample)
    assert (fresh().numpy() != fresh().numpy()).any()


def test_independent_noise_of_z_tilde_differs_from_that_of_z():
    seen = []

    class Spy(keras.layers.Layer):
        def build(self, input_shape):
            self.scale = self.add_weight(shape=())

        def call(self, z):
            seen.append(z)
            return self.scale * tf.reduce_sum(z, -1, keepdims=True)

    estimator = estimators.Relax(control_variate=Spy(), coupled=False)
    estimator.estimate(Bernoulli(tf.zeros([50, 1])), lambda b: b[:, 0], seed=0)
    z, z_tilde = (value.numpy() for value in seen)
    np.testing.assert_array_equal(z > 0, z_tilde > 0)
    assert abs(np.corrcoef(np.abs(z[:, 0]), np.abs(z_tilde[:, 0]))[0, 1]) < 0.6


def test_concrete_approaches_the_gradient_as_the_temperature_falls():
    cost = TableCost(2, seed=4)
    theta = np.array([0.5, -0.3])
    bias = {}
    for temperature in (0.1, 1.0):
        estimator = estimators.Concrete(temperature=temperature)
        gradients = per_example_gradients(estimator, cost, theta, (0, 1))
        bias[temperature] = np.abs(gradients.mean(0) - cost.gradient(theta)).max()
    assert bias[0.1] < bias[1.0] / 3


def test_temperature_can_be_changed_in_a_compiled_graph():
    estimator = estimators.Concrete(temperature=1.0)
    dist = Bernoulli(tf.zeros([1, 1]))
    run = tf.function(lambda: estimator.estimate(dist, lambda b: b[:, 0], seed=0).sample)
    warm = run()
    estimator.temperature = 0.1
    z = dist.draw(seed=0).z
    np.testing.assert_allclose(warm, tf.sigmoid(z), rtol=1e-5)
    np.testing.assert_allclose(run(), tf.sigmoid(z / 0.1), rtol=1e-5)


def test_black_box_cost_learns_with_relax():
    """A cost in NumPy: the control variate cuts the variance that it starts with by far."""
    theta = tf.zeros([64, 3])
    dist = Bernoulli(theta)
    cost = lambda b: tf.numpy_function(  # noqa: E731
        lambda b: (10 + b.sum(-1)).astype("float32"), [b], tf.float32
    )
    estimator = estimators.get("relax")
    optimizer = keras.optimizers.Adam(1e-2)

    def step(seed):
        with tf.GradientTape() as tape:
            estimate = estimator.estimate(dist, cost, seed=seed)
        phi = estimator.trainable_variables
        optimizer.apply(tape.gradient(estimate.control_variate_loss, phi), phi)
        return float(estimate.second_moment)

    moments = [step(seed) for seed in range(300)]
    assert np.mean(moments[-20:]) < np.mean(moments[:3]) / 10


@by_name(ALL)
def test_config_round_trip(config):
    estimator = estimators.get(config)
    again = estimators.deserialize(estimators.serialize(estimator))
    assert type(again) is type(estimator)
    assert estimators.serialize(again) == estimators.serialize(estimator)


def test_unused_control_variate_variables_are_refused():
    class Partial(keras.layers.Layer):
        def build(self, input_shape):
            self.used = self.add_weight(shape=())
            self.unused = self.add_weight(shape=(), name="forgotten")

        def call(self, x):
            return self.used * tf.reduce_sum(x, -1)

    estimator = estimators.Relax(control_variate=Partial())
    with pytest.raises(ValueError, match="forgotten"):
        estimator.estimate(Bernoulli(tf.zeros([2, 2])), lambda b: b[:, 0])


def test_user_network_with_leading_noise_free_output_shapes():
    for units in ([1], []):
        network = keras.layers.Lambda(lambda x, u=units: tf.reshape(x[:, 0], [-1, *u]))
        estimator = estimators.Relax(control_variate=network)
        estimate = estimator.estimate(Bernoulli(tf.zeros([2, 2])), lambda b: b[:, 0])
        assert estimate.gradient.shape == [2, 2]
