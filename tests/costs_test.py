"""What a model's cost is made of: losses, weights, regularisers, KL, a cost of one's own."""

import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from tests.further import further
from tests.problems import shake
from tests.small_models import Subclassed, data, small_model


def deterministic_twins(loss, loss_weights=None, structure="single"):
    """A RelaxModel that emits means in evaluation, and the same layers in a keras.Model."""
    inputs = keras.Input([3])
    layer = relax_tf.StochasticBinaryLayer(4, inference="mean")
    hidden = layer(inputs)
    first = keras.layers.Dense(2, activation="sigmoid", name="first")(hidden)
    second = keras.layers.Dense(3, activation="softmax", name="second")(hidden)
    outputs = {"single": first, "dict": {"a": first, "b": second}, "list": [first, second]}
    models = [cls(inputs, outputs[structure]) for cls in (relax_tf.RelaxModel, keras.Model)]
    for model in models:
        model.compile("sgd", loss=loss, loss_weights=loss_weights)
    return models


@pytest.mark.parametrize(
    "loss",
    [
        "mse",
        "binary_crossentropy",
        keras.losses.Huber(),
        keras.losses.MeanAbsoluteError(reduction="sum"),
        lambda y, p: keras.ops.mean(keras.ops.abs(y - p), -1),
        keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"),
        relax_tf.losses.BernoulliNegativeLogLikelihood(),
    ],
)
@pytest.mark.parametrize("weighted", [True, *further(False)])
def test_loss_is_keras_s(loss, weighted):
    ours, theirs = deterministic_twins(loss)
    x, _ = data()
    y = np.random.RandomState(1).randint(0, 2, [32, 2]).astype("f")
    weight = np.linspace(0, 3, 32).astype("f") if weighted else None
    values = [m.evaluate(x, y, sample_weight=weight, verbose=0) for m in (ours, theirs)]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5)


@pytest.mark.parametrize("structure", ["dict", "list"])
def test_several_losses_are_weighted_like_keras_s(structure):
    losses = {"a": "mse", "b": "sparse_categorical_crossentropy"}
    weights = {"a": 0.3, "b": 2.0}
    x, _ = data()
    y = {"a": np.ones([32, 2], "f"), "b": np.arange(32) % 3}
    if structure == "list":
        losses, weights, y = (list(value.values()) for value in (losses, weights, y))
    ours, theirs = deterministic_twins(losses, weights, structure)
    logs = [model.evaluate(x, y, return_dict=True, verbose=0) for model in (ours, theirs)]
    assert set(logs[0]) == set(logs[1])
    for name, value in logs[1].items():
        np.testing.assert_allclose(logs[0][name], value, rtol=1e-5)
    assert np.isfinite(ours.fit(x, y, verbose=0).history["loss"]).all()


def test_sample_weight_multiplies_the_whole_cost():
    model = small_model(prior="uniform")
    model.compile("sgd", loss="mse")
    x, y = data()
    weight = np.linspace(0, 2, 32).astype("f")
    plain, weighted = (
        model.estimate(x, y, sample_weight=w).estimates["b"] for w in (np.ones(32, "f"), weight)
    )
    assert weighted.cost[0] == 0
    np.testing.assert_array_equal(weighted.gradient[0], np.zeros(4))
    assert (np.abs(plain.gradient[0]) > 0).any()


def test_regularisers_and_add_loss_join_the_surrogate_once():
    model = small_model("rebar", kernel_regularizer=keras.regularizers.L2(0.1))
    model.compile("sgd", loss="mse")
    x, y = data()
    result = model.estimate(x, y)
    kernel = model.get_layer("b").kernel.numpy()
    expected = np.mean(result.estimates["b"].cost) + 0.1 * np.sum(kernel**2)
    np.testing.assert_allclose(result.surrogate, expected, rtol=1e-5)


def test_kl_of_layers_joins_the_cost():
    model = small_model(prior="learned")
    model.compile("sgd", loss=None)  # nothing but the KL
    layer = model.get_layer("b")
    shake(layer.trainable_variables)
    x, _ = data()
    expected = tf.reduce_mean(layer.kl_divergence(layer.distribution(tf.constant(x)), None))
    logs = model.evaluate(x, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("estimator", ["relaxed_rebar", "relax"])
def test_a_forgotten_loss_is_told_where_there_are_targets(estimator):
    x, y = data()
    model = small_model(estimator, prior="uniform")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"no loss.*KL alone.*y would be ignored.*loss=\.\.\."):
            model.estimate(x, y)
        model.compile("sgd")
    for method in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match="no loss"):
            method(x, y, verbose=0)
    if estimator == "relaxed_rebar":
        with pytest.raises(ValueError, match="is a loss compiled"):
            model.fit(x, verbose=0)
    else:
        model.fit(x, verbose=0)


def test_prior_in_a_plain_keras_model_joins_by_add_loss():
    inputs = keras.Input([3])
    layer = relax_tf.StochasticBinaryLayer(4, "concrete", prior="learned")
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd", loss=None)
    shake(layer.trainable_variables)
    x, _ = data()
    expected = tf.reduce_mean(layer.kl_divergence(layer.distribution(tf.constant(x)), None))
    np.testing.assert_allclose(
        model.fit(x, batch_size=32, verbose=0).history["loss"][0], expected, rtol=1e-5
    )


def test_regularised_control_variates_stay_out_of_the_surrogate():
    network = keras.Sequential(
        [keras.layers.Dense(1, kernel_regularizer=keras.regularizers.L2(100.0))]
    )
    model = small_model(relax_tf.estimators.Relax(control_variate=network))
    model.compile("sgd", loss="mse")
    with tf.GradientTape() as tape:
        result = model.estimate(*data())
    np.testing.assert_allclose(result.surrogate, np.mean(result.estimates["b"].cost), rtol=1e-6)
    phi = model.get_layer("b").estimator.trainable_variables
    assert tape.gradient(result.surrogate, [v.value for v in phi]) == [None] * len(phi)
    moment = result.estimates["b"].control_variate_loss
    penalty = 100 * np.sum(np.square(network.layers[0].kernel))
    np.testing.assert_allclose(result.control_variate_loss, moment + penalty, rtol=1e-5)


def test_compute_cost_sees_the_latents_of_each_pass():
    class Custom(Subclassed):
        seen = ()

        def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
            latent = latents["b"]
            assert latent.theta.shape == latent.sample.shape
            self.seen = (*self.seen, latent.sample.numpy())
            return tf.reduce_sum((y_pred - y) ** 2, -1)

    model = Custom("rebar")
    model.certify = False  # it would see those of the certificate too
    model.compile("sgd", run_eagerly=True)
    model.train_on_batch(*data())
    hard, relaxed = model.seen
    assert set(np.unique(hard)) <= {0, 1}
    assert ((relaxed > 0) & (relaxed < 1)).any()


def test_black_box_cost_trains_with_relax_and_is_refused_by_rebar():
    def loss(y, p):
        value = tf.numpy_function(lambda y, p: ((y - p) ** 2).mean(-1), [y, p], tf.float32)
        return tf.ensure_shape(value, [None])

    model = small_model("relax")
    model.compile(keras.optimizers.SGD(0.1), loss=loss)
    kernel = model.get_layer("b").kernel.numpy()
    model.fit(*data(), verbose=0)
    assert (model.get_layer("b").kernel.numpy() != kernel).any()
    for estimator in ("rebar", "relaxed_rebar"):
        for arguments in ({}, {"prior": "learned", "kl": "sampled"}):
            model = small_model(estimator, **arguments)
            model.compile("sgd", loss=loss)
            with pytest.raises(ValueError, match="'relax'"):
                model.fit(*data(), verbose=0)


def test_the_recipe_of_a_weight_on_the_kl_weighs_examples_as_keras_does():
    page = (pathlib.Path(__file__).parent.parent / "docs" / "keras.md").read_text()
    scope = {"relax_tf": relax_tf, "keras": keras}
    exec(re.search(r"```python\n(class BetaVAE.*?)```", page, re.DOTALL)[1], scope)
    inputs = keras.Input([3])
    layer = relax_tf.StochasticBinaryLayer(4, "rloo", prior="uniform", name="b")
    outputs = keras.layers.Dense(2)(layer(inputs))
    costs = {}
    for beta in (0.0, 0.5, 1.0):
        layer.seed_generator.state.assign([1, 2])
        model = scope["BetaVAE"](inputs, outputs, beta=beta)
        model.compile("sgd", loss="mse")
        weights = np.array([0.0, 1.0, 2.0], np.float32)
        estimate = model.estimate(np.ones([3, 3]), np.zeros([3, 2]), weights).estimates["b"]
        costs[beta] = estimate.cost.numpy()
    kl = layer.kl_divergence(layer.distribution(tf.ones([3, 3])), None)
    np.testing.assert_allclose(costs[1.0] - costs[0.0], weights * kl, rtol=1e-5)
    np.testing.assert_allclose(costs[0.5] - costs[0.0], 0.5 * weights * kl, rtol=1e-5)
    assert costs[0.0][0] == 0 < costs[0.0][1]
