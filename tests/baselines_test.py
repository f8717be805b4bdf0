"""What is particular to the estimators with baselines: reinforce, nvil, muprop."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf import estimators
from relax_tf.distributions import Bernoulli, Normal
from relax_tf.estimators.moving_moments import MovingMoments
from tests.further import further
from tests.problems import TableCost, shake, z_scores
from tests.suite import while_learning

PROBLEM = TableCost(2, seed=5)
THETA = np.array([0.3, -0.8])


def test_moving_moments_are_exact_weighted_averages():
    moments = MovingMoments(decay=0.7)
    assert moments.mean() == moments.standard_deviation() == 0
    batches = [np.random.RandomState(i).normal(i, 1 + i, size=[5]) for i in range(6)]
    for batch in batches:
        moments.update(tf.constant(batch))
    moments.update(tf.zeros([0]))
    weights = np.repeat(0.7 ** np.arange(6)[::-1], 5)
    values = np.concatenate(batches)
    mean = np.average(values, weights=weights)
    np.testing.assert_allclose(moments.mean(), mean, rtol=1e-5)
    variance = np.average((values - mean) ** 2, weights=weights)
    np.testing.assert_allclose(moments.standard_deviation(), variance**0.5, rtol=1e-5)


def test_moving_moments_of_large_values_keep_their_precision():
    moments = MovingMoments(decay=0.9)
    for seed in range(20):
        moments.update(1e4 + tf.random.stateless_normal([100], [seed, 0]))
    np.testing.assert_allclose(moments.standard_deviation(), 1.0, rtol=0.05)


@pytest.mark.parametrize(
    "config",
    [
        {"class_name": "reinforce", "config": {"baseline_decay": 0.5}},
        {"class_name": "nvil", "config": {"decay": 0.5}},
        {"class_name": "relax", "config": {"decay": 0.5}},
        *further(
            {"class_name": "muprop", "config": {"decay": 0.5}},
            {"class_name": "relax", "config": {"decay": 0.5, "coupled": False}},
        ),
    ],
    ids=["reinforce", "nvil", "relax", "muprop", "relax-independent"],
)
def test_baselines_stay_unbiased_over_successive_training_batches(config):
    """Batches of two: a baseline that knew its own batch would shrink the gradient by far."""
    steps = 4_000
    thetas = tf.constant([THETA, THETA], tf.float32)
    context = tf.constant([[1.0, 2.0], [-1.0, 0.5]])
    estimator = estimators.get(config)
    dist = Bernoulli(thetas)
    estimator.estimate(dist, PROBLEM, context=context, seed=0)
    optimizer = keras.optimizers.Adam(0.01)
    phi = estimator.trainable_variables
    optimizer.build(phi)

    def step(number):
        with tf.GradientTape() as tape:
            estimate = estimator.estimate(
                dist, PROBLEM, context=context, seed=tf.stack([number, 7])
            )
        if phi:
            optimizer.apply(tape.gradient(estimate.control_variate_loss, phi), phi)
        return estimate.gradient

    @tf.function(jit_compile=True, autograph=False)
    def run():
        def body(number, gradients):
            return number + 1, gradients.write(number, step(number))

        gradients = tf.TensorArray(tf.float32, steps, element_shape=thetas.shape)
        _, gradients = tf.while_loop(lambda number, _: number < steps, body, (0, gradients))
        return gradients.stack()

    gradients = run().numpy()
    assert np.abs(z_scores(gradients.mean(1), PROBLEM.gradient(THETA))).max() < 4


def test_first_estimate_knows_no_baseline_and_the_second_the_first_batch():
    cost = lambda b: 5 + tf.reduce_sum(b, -1)  # noqa: E731
    dist = Bernoulli(tf.zeros([3, 2]))
    plain = estimators.Reinforce()
    first = plain.estimate(dist, cost, seed=1)
    second = plain.estimate(dist, cost, seed=2)
    score = (second.gradient[:, 0] / second.cost)[:, tf.newaxis]
    for estimator in (
        estimators.Reinforce(baseline_decay=0.9),
        estimators.Nvil(),
        estimators.Relax(),  # whose network starts at zero
    ):
        gradients = [estimator.estimate(dist, cost, seed=seed).gradient for seed in (1, 2)]
        np.testing.assert_allclose(gradients[0], first.gradient, rtol=1e-6)
        expected = (second.cost - tf.reduce_mean(first.cost))[:, tf.newaxis] * score
        np.testing.assert_allclose(gradients[1][:, :1], expected, rtol=1e-5, atol=1e-6)


def test_nvil_normalisation_divides_by_the_past_standard_deviation():
    cost = lambda b: 30 * tf.reduce_sum(b, -1)  # noqa: E731
    dist = Bernoulli(tf.zeros([8, 2]))
    estimates = []
    for normalize_variance in (False, True):
        estimator = estimators.Nvil(normalize_variance=normalize_variance)
        first = estimator.estimate(dist, cost, seed=1)
        estimates.append(estimator.estimate(dist, cost, seed=2))
    ratio = np.std(first.cost)
    np.testing.assert_allclose(
        estimates[0].gradient, ratio * estimates[1].gradient, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        estimates[0].control_variate_loss, estimates[1].control_variate_loss, rtol=1e-6
    )


@pytest.mark.parametrize("name", ["nvil", *further("muprop", "relax")])
def test_learns_a_cost_that_its_context_foretells(name):
    context = tf.random.stateless_normal([64, 1], [1, 2])
    dist = Bernoulli(tf.zeros([64, 3]))

    def cost(b):
        # At the mean, where muprop looks, the first part vanishes with its derivative.
        return 10 * context[:, 0] * (2 * b[:, 0] - 1) ** 2 + tf.reduce_sum(b, -1)

    moments = while_learning(
        lambda estimate: estimate.second_moment, estimators.get(name), dist, cost, context
    )
    assert np.mean(moments[-20:]) < np.mean(moments[:3]) / 20


def test_nvil_takes_a_network_and_keeps_it_in_its_config():
    network = keras.Sequential([keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)])
    estimator = estimators.Nvil(baseline=network)
    again = estimators.deserialize(estimators.serialize(estimator))
    again.estimate(Bernoulli(tf.zeros([4, 2])), PROBLEM, context=tf.ones([4, 5]), seed=0)
    assert [v.shape for v in again.trainable_variables] == [(5, 3), (3,), (3, 1), (1,)]


@pytest.mark.parametrize(
    ("name", "dist"),
    [
        ("relax", Bernoulli(tf.random.stateless_normal([16, 3], [1, 2]))),
        ("lax", Normal(tf.random.stateless_normal([16, 3], [1, 2]), tf.ones([16, 3]))),
    ],
)
def test_black_box_control_variates_learn_in_units_of_past_costs(name, dist):
    """The same phi serves a cost and any multiple of it, wherever its zero is."""
    context = tf.random.stateless_normal([16, 2], [3, 4])
    gradients = []
    for unit, zero in ((1.0, 0.0), (50.0, 1000.0)):
        keras.utils.set_random_seed(0)
        estimator = estimators.get(name)
        cost = lambda b, u=unit, z=zero: z + u * tf.reduce_sum(tf.sin(b), -1)  # noqa: E731
        estimator.estimate(dist, cost, context=context, seed=0)
        shake(estimator.trainable_variables)
        estimate = estimator.estimate(dist, cost, context=context, seed=1)
        gradients.append(np.stack(tf.nest.flatten(estimate.gradient)) / unit)
    np.testing.assert_allclose(*gradients, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("estimator_class", [estimators.Relax, estimators.Lax, estimators.Muprop])
def test_black_box_baseline_sees_the_context_and_is_kept_in_the_config(estimator_class):
    network = keras.Sequential([keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)])
    estimator = estimator_class(baseline=network, decay=0.7)
    again = estimators.deserialize(estimators.serialize(estimator))
    dist = Bernoulli(tf.zeros([4, 2]))
    if estimator_class is estimators.Lax:
        dist = Normal(tf.zeros([4, 2]), tf.ones([4, 2]))
    again.estimate(dist, PROBLEM, context=tf.ones([4, 5]), seed=0)
    shapes = [variable.shape for variable in again.baseline.trainable_variables]
    assert shapes == [(5, 3), (3,), (3, 1), (1,)]
    assert again.get_config()["decay"] == 0.7
    with pytest.raises(ValueError, match="context=None"):
        again.estimate(dist, PROBLEM, seed=0)


def test_muprop_of_a_linear_cost_has_no_variance():
    slope = tf.constant([1.0, -2.0, 0.5])
    dist = Bernoulli(tf.random.stateless_normal([50, 3], [1, 2]), support=(-1, 1))
    cost = lambda b: tf.linalg.matvec(b, slope) + 3  # noqa: E731
    gradient = estimators.get("muprop").estimate(dist, cost).gradient
    p = tf.sigmoid(dist.theta)
    np.testing.assert_allclose(gradient, 2 * p * (1 - p) * slope, rtol=1e-4, atol=1e-5)


def binary_model(estimator, **arguments):
    inputs = keras.Input([3])
    b = relax_tf.StochasticBinaryLayer(4, estimator, name="b", **arguments)(inputs)
    return relax_tf.RelaxModel(inputs, keras.layers.Dense(2)(b))


X, Y = np.ones([8, 3], "f"), np.ones([8, 2], "f")


def test_baseline_of_a_layer_moves_once_per_step_and_is_saved(tmp_path):
    model = binary_model(estimators.Reinforce(baseline_decay=0.5))
    model.compile("sgd", loss="mse")
    loss = model.fit(X, Y, verbose=0).history["loss"][0]
    path = tmp_path / "model.keras"
    model.save(path)
    for each in (model, keras.models.load_model(path)):
        np.testing.assert_allclose(each.get_layer("b").estimator.past.mean(), loss, rtol=1e-5)


def test_baseline_of_a_layer_that_is_called_twice_knows_past_batches_only():
    layer = relax_tf.StochasticBinaryLayer(
        3, estimators.Reinforce(baseline_decay=0.5), use_bias=False, name="b"
    )
    inputs = keras.Input([3])
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(2)(layer(layer(inputs))))
    model.compile("sgd", loss="mse")
    for estimate in model.estimate(X, Y).estimates.values():
        latent_score = estimate.gradient / estimate.cost[:, tf.newaxis]
        assert bool(tf.reduce_all(tf.abs(latent_score) <= 1))  # b - p: no baseline so far
        assert bool(tf.reduce_any(tf.abs(estimate.gradient) > 0))


@pytest.mark.parametrize("mode", [{"run_eagerly": True}, *further({"jit_compile": True})])
@pytest.mark.parametrize("estimator", ["nvil", "muprop"])
@pytest.mark.uncertified
def test_layers_train(estimator, mode):
    model = binary_model(estimator, prior="learned", kl="sampled")
    model.compile("adam", loss="mse", **mode)
    history = model.fit(X, Y, epochs=2, verbose=0).history
    assert np.isfinite(history["b_second_moment"]).all()
    assert "b_control_variate_norm" in history


def test_evaluations_are_those_of_the_cost():
    calls = []

    def cost(b):
        calls.append(b.shape[0] if b.shape.rank == 3 else 1)
        return tf.reduce_sum(b**2, -1)

    for name in set(estimators._BY_ID) - {"lax", "reparameterization"}:
        estimator = estimators.get(name)
        estimator.estimate(Bernoulli(tf.zeros([4, 3])), cost, seed=0)
        estimator._hides_python = lambda *_: False  # that one traces the cost once more
        calls.clear()
        estimator.estimate(Bernoulli(tf.zeros([4, 3])), cost, seed=0)
        assert sum(calls) == estimator.evaluations, name
        assert calls[0] == estimator.num_samples, name  # all samples in one call
