"""The suite that every estimator passes: exact enumeration, execution modes, extremes, leaks."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from relax_tf import estimators
from relax_tf.distributions import Bernoulli
from tests.further import further
from tests.problems import (
    CategoricalTableCost,
    NormalCost,
    TableCost,
    normal_from,
    shake,
    z_scores,
)
from tests.suite import (
    ALL,
    BIASED,
    DRAWS,
    UNBIASED,
    B,
    R,
    by_family,
    by_name,
    by_problem,
    per_example_gradients,
    repeated,
    shaken,
    total,
    total_square_of,
    while_learning,
)

tfd = tfp.distributions

# Those whose phi minimises the second moment.
LEARNING = {
    name: config
    for name, config in UNBIASED.items()
    if name.split("-")[0] in ("rebar", "relax", "relaxed_rebar", "lax", "relaxed_disarm")
}


@by_problem(UNBIASED)
def test_mean_equals_the_exact_gradient(config, other):
    problem = other
    estimator = shaken(config, problem.distribution(repeated(problem.theta, 2)))
    assert estimator.unbiased
    gradients = per_example_gradients(estimator, problem)
    assert np.abs(z_scores(gradients, problem.gradient(problem.theta))).max() < 4


@by_problem(
    BIASED,
    {
        "bernoulli": TableCost(3, seed=1, wave=0.1),
        "categorical": CategoricalTableCost(2, 3, seed=1, wave=0.1),
    },
)
def test_biased_estimators_are_biased_and_say_so(config, other):
    problem = other
    estimator = shaken(config, problem.distribution(repeated(problem.theta, 2)))
    assert not estimator.unbiased
    gradients = per_example_gradients(estimator, problem, draws=20_000)
    assert np.abs(z_scores(gradients, problem.gradient(problem.theta))).max() > 10


@by_problem(
    {key: UNBIASED[key] for key in UNBIASED if "rela" in key or key in ("lax", "nvil", "muprop")},
    {
        "bernoulli": TableCost(2, seed=5),
        "categorical": CategoricalTableCost(2, 3, seed=5),
        "normal": NormalCost(2, seed=5),
    },
)
def test_control_variate_with_context_is_unbiased(config, other):
    problem = other
    context = tf.random.stateless_normal([DRAWS, 4], [1, 2])
    thetas = repeated(problem.theta, DRAWS)
    estimator = shaken(config, problem.distribution(thetas[:2]), context=context[:2])
    with tf.GradientTape() as tape:
        tape.watch(thetas)
        dist = problem.distribution(thetas)
        estimate = estimator.estimate(dist, problem, context=context, seed=3)
    gradient = tape.gradient(estimate.surrogate, thetas) * DRAWS
    assert np.abs(z_scores(gradient, problem.gradient(problem.theta))).max() < 4


@by_family(ALL)
def test_theta_may_be_a_vector_or_a_matrix_per_example(config, other):
    for event in ([4], [2, 3, 4]):
        dist = other(tf.random.stateless_normal([5, *event], [1, 2]))
        estimator = shaken(config, dist)
        estimate = estimator.estimate(dist, total_square_of(dist), seed=0)
        for gradient, theta in zip(
            tf.nest.flatten(estimate.gradient), tf.nest.flatten(dist.theta), strict=True
        ):
            assert gradient.shape == theta.shape
        assert estimate.cost.shape == [5]


@by_name({key: value for key, value in ALL.items() if key not in ("lax", "reparameterization")})
def test_theta_may_be_a_scalar_per_example(config):
    dist = Bernoulli(tf.zeros([5]))
    estimate = shaken(config, dist).estimate(dist, total_square_of(dist), seed=0)
    assert estimate.gradient.shape == estimate.cost.shape == [5]


@by_family(ALL)
def test_eager_graph_and_xla_agree(config, other):
    theta = tf.random.stateless_normal([7, 4], [1, 2])
    estimator = shaken(config, other(theta))

    def run(theta):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(theta)
            cost = lambda b: total(tf.sin(3 * b)) + total(b) ** 2  # noqa: E731
            estimate = estimator.estimate(other(theta), cost, seed=4)
        variables = estimator.trainable_variables
        return (
            estimate,
            tape.gradient(estimate.surrogate, theta),
            tape.gradient(estimate.control_variate_loss, variables) if variables else [],
        )

    state = [variable.numpy() for variable in estimator.non_trainable_variables]
    eager = run(theta)
    for jit_compile in (False, True):
        for variable, value in zip(estimator.non_trainable_variables, state, strict=True):
            variable.assign(value)
        compiled = tf.function(run, jit_compile=jit_compile, autograph=False)(theta)
        for a, b in zip(tf.nest.flatten(eager), tf.nest.flatten(compiled), strict=True):
            np.testing.assert_allclose(a, b, rtol=5e-4, atol=5e-5)


@by_family(ALL)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_extreme_parameters_stay_finite(config, other, dtype):
    values = np.array([-1e4, -200.0, -1.0, 0.0, 1.0, 3.0, 200.0, 1e4])
    if other is normal_from and dtype == "float16":
        values /= 100  # whose control variate or score is out of float16's range else
    theta = tf.cast([values, values[::-1]] * 20, dtype)  # twenty draws
    estimator = estimators.get(config)
    estimator.estimate(other(theta), total, seed=0)
    shake(estimator.trainable_variables, 0.1)
    with tf.GradientTape() as tape:
        tape.watch(theta)
        estimate = estimator.estimate(other(theta), lambda b: total(tf.sin(b)), seed=1)
        objective = estimate.surrogate + estimate.control_variate_loss
    gradients = tape.gradient(objective, [theta, *(v.value for v in estimator.trainable_variables)])
    for leaf in tf.nest.flatten(estimate.gradient):
        assert leaf.dtype == (tf.float64 if dtype == "float64" else tf.float32)
    for value in tf.nest.flatten([estimate, gradients]):
        assert bool(tf.reduce_all(tf.math.is_finite(tf.cast(value, tf.float32))))


@by_family(ALL)
def test_gradients_reach_what_they_should_and_nothing_else(config, other):
    weight = tf.Variable(0.3)  # of the model, in the cost
    matrix = tf.Variable(tf.random.stateless_normal([4, 4], [1, 2]))
    x = tf.random.stateless_normal([6, 4], [3, 4])
    estimator = estimators.get(config)
    with tf.GradientTape(persistent=True) as tape:
        dist = other(x @ matrix)
        cost = lambda b: total((b - weight) ** 2)  # noqa: E731
        estimate = estimator.estimate(dist, cost, context=x @ matrix, seed=0)
    phi = [variable.value for variable in estimator.trainable_variables]

    assert all(g is not None for g in tape.gradient(estimate.control_variate_loss, phi))
    assert tape.gradient(estimate.control_variate_loss, [weight, matrix]) == [None, None]
    assert tape.gradient(estimate.second_moment, [weight, matrix, *phi]) == [None] * (2 + len(phi))
    assert tape.gradient(estimate.gradient, [weight, matrix, *phi]) == [None] * (2 + len(phi))
    assert tape.gradient(estimate.surrogate, phi) == [None] * len(phi)
    to_weight, to_matrix = tape.gradient(estimate.surrogate, [weight, matrix])
    shares = [leaf / 6 for leaf in tf.nest.flatten(estimate.gradient)]
    expected = tape.gradient(tf.nest.flatten(dist.theta), matrix, output_gradients=shares)
    np.testing.assert_allclose(to_matrix, expected, rtol=1e-4, atol=1e-6)
    with tf.GradientTape() as tape:
        objective = tf.reduce_mean(estimator.combine(cost(tf.stop_gradient(estimate.sample))))
    np.testing.assert_allclose(to_weight, tape.gradient(objective, weight), rtol=1e-5)


@by_problem(
    LEARNING,
    {
        "bernoulli": TableCost(3, seed=3),
        "categorical": CategoricalTableCost(2, 3, seed=3),
        "normal": NormalCost(2, seed=3),
    },
)
def test_control_variate_gradient_is_the_derivative_of_the_second_moment(config, other):
    keras.config.set_floatx("float64")
    theta = tf.random.stateless_normal([50, *other.theta.shape], [1, 2], dtype=tf.float64)
    dist = other.distribution(theta)
    settings = {k: v for k, v in config.get("config", {}).items() if k not in R | B}
    estimator = estimators.get({**config, "config": settings})  # networks in float64
    estimator.estimate(dist, other, seed=0)
    shake(estimator.trainable_variables)
    past = [variable.numpy() for variable in estimator.non_trainable_variables]

    def estimate():
        for variable, value in zip(estimator.non_trainable_variables, past, strict=True):
            variable.assign(value)  # every estimate adds its costs to them
        return estimator.estimate(dist, other, seed=1)

    with tf.GradientTape() as tape:
        loss = estimate().control_variate_loss
    gradients = tape.gradient(loss, [v.value for v in estimator.trainable_variables])
    step = 1e-6
    for variable, gradient in zip(estimator.trainable_variables, gradients, strict=True):
        direction = np.random.RandomState(0).normal(size=variable.shape)
        value = variable.numpy()
        moments = []
        for sign in (1, -1):
            variable.assign(value + sign * step * direction)
            moments.append(estimate().second_moment.numpy())
        variable.assign(value)
        numeric = (moments[0] - moments[1]) / (2 * step)
        np.testing.assert_allclose(np.sum(gradient * direction), numeric, rtol=1e-4, atol=1e-7)


@by_family(ALL)
def test_estimate_is_consistent(config, other):
    dist = other(tf.random.stateless_normal([9, 4], [1, 2]))
    estimator = shaken(config, dist)
    draw = estimator.draw(dist, seed=7)
    estimate = estimator.estimate(dist, lambda b: total(b) ** 2, draw=draw, seed=3)
    expected = estimator.combine(total(estimate.sample) ** 2)
    np.testing.assert_allclose(estimate.cost, expected, rtol=1e-5)
    np.testing.assert_allclose(estimate.surrogate, np.mean(estimate.cost), rtol=1e-6)
    squares = [np.sum(np.square(leaf), -1) for leaf in tf.nest.flatten(estimate.gradient)]
    np.testing.assert_allclose(estimate.second_moment, np.mean(np.sum(squares, 0)), rtol=1e-5)
    if estimator.hard:
        np.testing.assert_array_equal(estimate.sample, draw.b)


@by_family(ALL)
def test_seed_and_draw_decide_the_noise(config, other):
    dist = other(tf.zeros([4, 4]))
    estimator = shaken(config, dist)
    sample = lambda **kwargs: estimator.estimate(dist, total, **kwargs).sample.numpy()  # noqa: E731
    np.testing.assert_array_equal(sample(seed=1), sample(seed=1))
    assert (sample(seed=1) != sample(seed=2)).any()
    assert (sample() != sample()).any()
    fresh = tf.function(lambda: estimator.estimate(dist, total).sample, autograph=False)
    assert (fresh().numpy() != fresh().numpy()).any()


@pytest.mark.parametrize(
    ("problem", "theirs"),
    [
        (TableCost(3, seed=1), lambda t: tfd.Independent(tfd.Bernoulli(logits=t), 1)),
        (
            CategoricalTableCost(2, 3, seed=1),
            lambda t: tfd.Independent(tfd.OneHotCategorical(logits=t), 1),
        ),
        (NormalCost(2, seed=1), lambda t: tfd.MultivariateNormalDiag(*normal_from(t).theta)),
    ],
    ids=["bernoulli", "categorical", "normal"],
)
def test_reinforce_is_tfp_s_score_function_expectation(problem, theirs):
    thetas = repeated(problem.theta, 30)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(thetas)
        dist = problem.distribution(thetas)
        estimate = estimators.get("reinforce").estimate(dist, problem, seed=2)
        expectation = tfp.monte_carlo.expectation(
            problem, estimate.sample, theirs(thetas).log_prob, use_reparameterization=False
        )
    np.testing.assert_allclose(estimate.surrogate, expectation, rtol=1e-5)
    expected = tape.gradient(expectation, thetas)
    actual = tape.gradient(estimate.surrogate, thetas)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_reparameterization_is_backpropagation_through_the_sample():
    theta = tf.random.stateless_normal([6, 4], [1, 2])
    with tf.GradientTape() as tape:
        tape.watch(theta)
        cost = NormalCost(2, seed=1)(normal_from(theta).draw(seed=3).b)
    expected = tape.gradient(cost, theta)
    with tf.GradientTape() as tape:
        tape.watch(theta)
        estimate = estimators.get("reparameterization").estimate(
            normal_from(theta), NormalCost(2, seed=1), seed=3
        )
    gradient = tape.gradient(estimate.surrogate, theta) * 6
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


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
    z, z_tilde = (value.numpy() for value in seen[-2:])  # the first is symbolic
    np.testing.assert_array_equal(z > 0, z_tilde > 0)
    assert abs(np.corrcoef(np.abs(z[:, 0]), np.abs(z_tilde[:, 0]))[0, 1]) < 0.6


@pytest.mark.parametrize("problem", [TableCost(2, seed=4), CategoricalTableCost(1, 3, seed=4)])
def test_concrete_approaches_the_gradient_as_the_temperature_falls(problem):
    bias = {}
    for temperature in (0.1, 1.0):
        estimator = estimators.Concrete(temperature=temperature)
        gradients = per_example_gradients(estimator, problem)
        exact = problem.gradient(problem.theta)
        bias[temperature] = np.abs(gradients.mean(0) - exact).max()
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
    moments = while_learning(
        lambda estimate: estimate.second_moment, estimators.get("relax"), dist, cost
    )
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


@pytest.mark.parametrize("name", ["emit", "combine", "observe", "estimate"])
def test_autograph_can_read_what_subclasses_override(name):
    """It warns in every user's log otherwise, for one where the body is a docstring alone."""
    tf.autograph.to_graph(getattr(estimators.Estimator, name))


@pytest.mark.parametrize("name", ["reinforce", "relax", *further("rebar", "rloo", "flip")])
def test_surrogates_keep_their_gradient_in_vectorized_map(name):
    """It drops every `tf.custom_gradient`, and the gradient was 0."""
    estimator = estimators.get(name)
    theta = tf.random.stateless_uniform([5, 3], [1, 2], 0.5, 1.5)

    def estimate(one):
        cost = lambda b: tf.reduce_sum((b - 0.4) ** 2, -1)  # noqa: E731
        return estimator.estimate(Bernoulli(one[tf.newaxis]), cost, seed=tf.constant([1, 2]))

    estimate(theta[0])
    with tf.GradientTape() as tape:
        tape.watch(theta)
        surrogates = tf.vectorized_map(lambda one: estimate(one).surrogate, theta)
    gradients = tf.concat([estimate(one).gradient for one in theta], 0)
    np.testing.assert_allclose(tape.gradient(surrogates, theta), gradients, rtol=1e-4)
