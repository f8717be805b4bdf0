"""What is particular to estimators with several samples: rloo, vimco, arm, disarm."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import relax_tf
from relax_tf import estimators
from relax_tf.distributions import Bernoulli
from relax_tf.estimators.multi_sample import multi_sample_bound, vimco_credits
from relax_tf.step.folding import fold, tile, unfold
from tests.further import further
from tests.problems import CategoricalTableCost, TableCost, differentiate, z_scores
from tests.stacks import X as X1
from tests.stacks import Y as Y1
from tests.stacks import (
    assert_follows,
    binary_states,
    model_variables,
    two_layer_model,
)
from tests.suite import per_example_gradients, repeated

pytestmark = pytest.mark.uncertified

tfd = tfp.distributions


def theta_of(batch, units=3):
    return tf.random.stateless_normal([batch, units], [1, 2])


# Functions.


@pytest.mark.parametrize("name", ["rloo", "vimco", "arm", "disarm"])
def test_cost_is_called_once_with_all_samples(name):
    shapes = []

    def cost(b):
        shapes.append(tuple(b.shape))
        return tf.reduce_sum(b, -1)

    estimator = estimators.get(name)
    estimate = estimator.estimate(Bernoulli(theta_of(5)), cost)
    assert shapes == [(estimator.num_samples, 5, 3)]
    assert estimate.sample.shape == shapes[0]
    assert estimate.cost.shape == [5]
    assert estimate.gradient.shape == [5, 3]


def test_rloo_is_reinforce_less_the_mean_of_the_others():
    dist = Bernoulli(theta_of(4))
    cost = TableCost(3, seed=1)
    draw = dist.draw(seed=3, sample_shape=(5,))
    estimate = estimators.Rloo(num_samples=5).estimate(dist, cost, draw=draw)
    f = cost(draw.b).numpy()
    expected = np.zeros([4, 3])
    for k in range(5):
        others = np.delete(f, k, 0).mean(0)
        expected += (f[k] - others)[:, np.newaxis] * dist.score(draw.b[k]) / 5
    np.testing.assert_allclose(estimate.gradient, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(estimate.sample, draw.b)


def test_antithetic_pairs_are_independent_of_what_the_second_half_of_a_draw_says():
    dist = Bernoulli(theta_of(4))
    b, z = dist.draw(seed=1, sample_shape=(2,))
    for name in ("arm", "disarm"):
        sample = estimators.get(name).estimate(dist, TableCost(3), draw=(b, z)).sample
        np.testing.assert_array_equal(sample[0], b[0])
        np.testing.assert_array_equal(sample[1], dist.harden(2 * dist.theta - z[0]))


def test_disarm_is_arm_averaged_over_its_noise_and_varies_less():
    problem = TableCost(3, seed=2)
    arm, disarm = (
        per_example_gradients(estimators.get(name), problem) for name in ("arm", "disarm")
    )
    assert (disarm.var(0) < arm.var(0)).all()
    u = np.random.RandomState(0).uniform(size=200_000)
    z = 0.7 + np.log(u / (1 - u))
    pairs = (z > 0) != (2 * 0.7 - z > 0)
    ones = pairs & (z > 0)
    np.testing.assert_allclose(u[ones].mean() - 0.5, tf.sigmoid(0.7) / 2, rtol=1e-2)
    assert abs(u[~pairs].mean() - 0.5) < 1e-2


def test_vimco_credits_leave_one_out():
    log_w = np.random.RandomState(0).normal(size=[4, 3])
    credits = vimco_credits(tf.constant(log_w)).numpy()
    bound = lambda v: np.log(np.mean(np.exp(v), 0))  # noqa: E731
    np.testing.assert_allclose(multi_sample_bound(tf.constant(log_w)), bound(log_w))
    for k in range(4):
        without = log_w.copy()
        without[k] = np.delete(log_w, k, 0).mean(0)
        np.testing.assert_allclose(credits[k], bound(log_w) - bound(without))


@pytest.mark.parametrize("spread", [1.0, 1e3, 1e6])
def test_vimco_credits_stay_finite(spread):
    log_w = tf.constant(spread * np.random.RandomState(0).normal(size=[5, 100]), tf.float32)
    assert bool(tf.reduce_all(tf.math.is_finite(vimco_credits(log_w))))


def test_vimco_is_tfp_s():
    theta, k = theta_of(6), 5
    weight = tf.Variable(0.3)
    samples = []

    def log_p(b):
        samples.append(b)
        return -TableCost(3, seed=2)(b) * weight

    def q_of(theta):
        return tfd.Independent(tfd.Bernoulli(logits=theta, dtype=tf.float32), 1)

    with tf.GradientTape(persistent=True) as tape:
        tape.watch(theta)
        theirs = tfp.vi.monte_carlo_variational_loss(
            log_p,
            q_of(theta),
            importance_sample_size=k,
            gradient_estimator=tfp.vi.GradientEstimators.VIMCO,
            seed=0,
        )
        dist = Bernoulli(theta)
        sample = samples[0][:, 0]
        draw = (sample, 2 * sample - 1)
        cost = lambda b: dist.log_prob(b) - log_p(b)  # noqa: E731
        ours = estimators.Vimco(num_samples=k).estimate(dist, cost, draw=draw)
    np.testing.assert_allclose(ours.cost, theirs, rtol=1e-5)
    for source in (theta, weight):
        np.testing.assert_allclose(
            tape.gradient(ours.surrogate, source),
            tape.gradient(theirs, source) / 6,
            rtol=1e-4,
            atol=1e-6,
        )


def enumerated_bound(log_q, costs, k):
    """Minus the K-sample bound, from the log-probability and cost of every state."""
    total = 0.0
    for states in itertools.product(range(log_q.shape[0]), repeat=k):
        p = tf.exp(tf.reduce_sum(tf.gather(log_q, states)))
        log_w = -tf.gather(costs, states)
        total -= p * (tf.reduce_logsumexp(log_w) - tf.math.log(tf.cast(k, p.dtype)))
    return total


@pytest.mark.parametrize(("units", "direct", "k"), [(1, False, 2), (2, True, 3), (2, False, 2)])
def test_vimco_follows_the_enumerated_bound(units, direct, k):
    problem = TableCost(units, direct=direct, seed=units)
    states = tf.constant(list(itertools.product([0, 1], repeat=units)), tf.float64)

    def expectation(theta):
        log_q = Bernoulli(theta[tf.newaxis]).log_prob(states)
        return enumerated_bound(log_q, problem(states, theta), k)

    gradients = per_example_gradients(estimators.Vimco(num_samples=k), problem)
    expected = differentiate(expectation, problem.theta)
    assert np.abs(z_scores(gradients, expected)).max() < 4


# Models.


def test_folding():
    samples = tf.reshape(tf.range(24), [3, 2, 4])
    np.testing.assert_array_equal(unfold(fold(samples), 3), samples)
    x = tf.constant([[1, 2], [3, 4]])
    np.testing.assert_array_equal(unfold(tile({"x": x, "y": None}, 3)["x"], 3)[2], x)


def model(*chosen, **arguments):
    inputs = keras.Input([3])
    b = inputs
    for index, estimator in enumerate(chosen):
        b = relax_tf.StochasticBinaryLayer(4, estimator, name=f"b{index}", **arguments)(b)
    return relax_tf.RelaxModel(inputs, keras.layers.Dense(2, name="outputs")(b))


X, Y = np.ones([8, 3], "f"), np.linspace(0, 1, 16, dtype="f").reshape(8, 2)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, {"run_eagerly": True}) for name in ("rloo", "disarm", "vimco")),
        ("disarm", {"jit_compile": True}),
        *further(*((name, {"jit_compile": True}) for name in ("rloo", "vimco"))),
    ],
)
def test_layers_train(name, mode):
    trained = model(name, name, prior="learned", kl="sampled")
    trained.compile("adam", loss="mse", metrics=["mae"], **mode)
    history = trained.fit(X, Y, epochs=2, batch_size=4, verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values())


def test_particles_of_layers_of_several_dtypes():
    inputs = keras.Input([3])
    b = relax_tf.StochasticBinaryLayer(2, "vimco", dtype="float64")(inputs)
    b = relax_tf.StochasticBinaryLayer(2, "vimco")(b)
    several = relax_tf.RelaxModel(inputs, keras.layers.Dense(2)(b))
    several.compile("sgd", loss="mse")
    losses = several.fit(np.ones([8, 3], "f"), np.ones([8, 2], "f"), epochs=2, verbose=0)
    assert np.isfinite(losses.history["loss"]).all()


@pytest.mark.parametrize("name", ["rloo", "arm", "disarm", "vimco"])
def test_estimates_of_layers_have_all_samples(name):
    trained = model(name, "relax") if name != "vimco" else model(name, name)
    trained.compile("sgd", loss="mse")
    estimate = trained.estimate(X, Y).estimates["b0"]
    estimator = trained.get_layer("b0").estimator
    assert estimate.sample.shape == [estimator.num_samples, 8, 4]
    assert estimate.cost.shape == [8]
    assert estimate.gradient.shape == [8, 4]
    np.testing.assert_allclose(estimate.surrogate, np.mean(estimate.cost), rtol=1e-5)


def test_estimates_of_a_layer_are_those_of_the_function():
    for name in ("rloo", "disarm"):
        trained = model(name)
        trained.compile("sgd", loss="mse")
        estimate = trained.estimate(X, Y).estimates["b0"]
        layer, outputs = trained.get_layer("b0"), trained.get_layer("outputs")
        dist = layer.distribution(tf.constant(X))
        cost = lambda b, o=outputs: tf.reduce_mean((o(b) - Y) ** 2, -1)  # noqa: E731
        f = cost(estimate.sample)
        np.testing.assert_allclose(estimate.cost, tf.reduce_mean(f, 0), rtol=1e-5)
        gradient = {
            "rloo": lambda: estimators.rloo_gradient(dist, estimate.sample, f),  # noqa: B023
            "disarm": lambda: estimators.disarm_gradient(dist, estimate.sample, f),  # noqa: B023
        }[name]()
        np.testing.assert_allclose(estimate.gradient, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "sum_over_batch_size", "mean_with_sample_weight"])
def test_folded_replays_keep_the_scale_of_the_loss(reduction):
    """The same sample everywhere costs the same, so its leave-one-out credit is zero."""
    trained = model("rloo")
    trained.compile("sgd", loss=keras.losses.MeanSquaredError(reduction=reduction))
    layer = trained.get_layer("b0")
    layer.kernel.assign(tf.zeros_like(layer.kernel))
    layer.bias.assign(tf.fill([4], 50.0))
    weight = np.linspace(1, 2, 8, dtype="f")
    estimate = trained.estimate(X, Y, sample_weight=weight).estimates["b0"]
    assert (estimate.sample == 1).numpy().all()
    np.testing.assert_allclose(estimate.gradient, np.zeros([8, 4]), atol=1e-12)
    loss = keras.losses.MeanSquaredError(reduction=reduction)
    expected = loss(Y, trained(X), sample_weight=weight)
    np.testing.assert_allclose(np.mean(estimate.cost), expected, rtol=1e-5)


def test_vimco_layers_follow_the_enumerated_bound_of_two_layers():
    trained = two_layer_model(
        estimators.Vimco(num_samples=2), estimators.Vimco(num_samples=2), "learned", "sampled"
    )
    l1, l2 = trained.get_layer("b1"), trained.get_layer("b2")
    states = list(itertools.product(binary_states(3, (-1.0, 1.0)), binary_states(2, (0.0, 1.0))))
    b1, b2 = (tf.stack(part) for part in zip(*states, strict=True))
    count = len(states)
    with tf.GradientTape() as tape:
        dist1 = l1.distribution(tf.tile(tf.constant(X1), [count, 1]))
        dist2 = l2.distribution(b1)
        log_q = dist1.log_prob(b1) + dist2.log_prob(b2)
        outputs = trained.get_layer("outputs")(trained.get_layer("hidden")(tf.concat([b1, b2], -1)))
        costs = tf.reduce_mean((outputs - Y1) ** 2, -1)
        costs += l1.kl_divergence(dist1, b1) + l2.kl_divergence(dist2, b2)
        pairs = -tf.stack([tf.repeat(costs, count), tf.tile(costs, [count])])
        p = tf.exp(tf.repeat(log_q, count) + tf.tile(log_q, [count]))
        loss = -tf.reduce_sum(p * multi_sample_bound(pairs))
    variables = model_variables(trained)
    expected = tape.gradient(loss, [v.value for v in variables])
    assert_follows(trained, expected)
    x, y = np.tile(X1, [1000, 1]), np.tile(Y1, [1000, 1])
    logged = trained.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    assert logged > loss  # evaluation reports the cost of single samples


@pytest.mark.parametrize(
    ("problem", "name"),
    [
        *itertools.product([TableCost(3)], ["arms", "rloo", "disarm", "midpoint"]),
        *itertools.product([CategoricalTableCost(2, 3)], ["arms", "rloo", "midpoint"]),
    ],
)
def test_a_draw_of_the_distribution_s_own_will_do(problem, name):
    """Independent samples, given to estimators whose samples are not."""
    estimator = estimators.get(name)
    dist = problem.distribution(repeated(problem.theta, 50_000))
    draw = dist.draw(seed=1, sample_shape=(estimator.num_samples,))
    gradients = estimator.estimate(dist, problem, draw=draw, seed=2).gradient
    assert np.abs(z_scores(gradients, problem.gradient(problem.theta))).max() < 4.5


class Own(estimators.MultiSampleEstimator):
    """Leave-one-out, as one writes it by CONTRIBUTING.md: nothing said of the objective."""

    def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
        return estimators.rloo_gradient(dist, draw.b, f_b), None


class Vector(Own):
    def combine(self, f_b):
        return f_b


def test_an_estimator_of_one_s_own_has_the_objective_and_the_step_of_rloo():
    steps = []
    for estimator in (Own(num_samples=3), estimators.Rloo(num_samples=3)):
        keras.utils.set_random_seed(0)
        inputs = keras.Input([3])
        b = relax_tf.StochasticBinaryLayer(4, estimator, seed=1, name="b")(inputs)
        model = relax_tf.RelaxModel(inputs, keras.layers.Dense(2)(b))
        model.compile(keras.optimizers.SGD(1.0), loss="mse")
        before = [variable.numpy() for variable in model.trainable_variables]
        model.train_on_batch(X1, Y1)
        after = [variable.numpy() for variable in model.trainable_variables]
        steps.append([a - b for a, b in zip(after, before, strict=True)])
    for own, rloo in zip(*steps, strict=True):
        np.testing.assert_allclose(own, rloo, rtol=1e-5, atol=1e-7)
    assert np.abs(steps[0][0]).max() > 0


def test_an_objective_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"`combine` of estimator 'Vector'.*\(5,\).*\(3, 5\)"):
        Vector(3).estimate(Bernoulli(theta_of(5)), lambda b: tf.reduce_sum(b, -1))


class Counter(keras.layers.Layer):
    """Counts examples of training, from a million on."""

    def build(self, shape):
        million = keras.initializers.Constant(1e6)
        self.seen = self.add_weight(shape=(), initializer=million, trainable=False)

    def call(self, x, training=None):
        if training:
            self.seen.assign_add(tf.cast(tf.shape(x)[0], tf.float32))
        return x


def test_a_bound_counts_each_example_once():
    inputs, counter = keras.Input([3]), Counter()
    b = relax_tf.StochasticBinaryLayer(4, estimators.Vimco(num_samples=5))(counter(inputs))
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(2)(b))
    model.compile("sgd", loss="mse")
    model.certify = True
    model.fit(np.ones([8, 3]), np.ones([8, 2]), batch_size=8, verbose=0)
    assert counter.seen.numpy() == 1e6 + 8
