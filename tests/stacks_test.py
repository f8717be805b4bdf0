"""Stacks of layers follow their exact gradients; what layers take and emit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from tests.further import further
from tests.problems import shake, z_scores
from tests.small_models import data, small_model
from tests.stacks import (
    BINARY,
    CATEGORICAL,
    NORMAL,
    SIZES,
    X,
    Y,
    assert_follows,
    binary_states,
    exact_gradients,
    expected_loss,
    gradients_of_train_steps,
    mixed_model,
    model_variables,
    two_layer_model,
)


@pytest.mark.parametrize(
    ("below", "above", "prior", "kl"),
    [
        ("relaxed_rebar", "relaxed_rebar", "learned", "sampled"),
        ("rebar", "relax", "learned", "analytic"),
        ("rloo", "disarm", "learned", "sampled"),
        ("nvil", "muprop", None, "analytic"),
        *further(
            ("relax", "rebar", None, "analytic"),
            ("reinforce", "relaxed_rebar", "uniform", "sampled"),
            (relax_tf.estimators.RelaxedRebar(coupled=False), "rebar", "learned", "sampled"),
            ("disarm", "rloo", "uniform", "analytic"),
            ("muprop", "nvil", "learned", "sampled"),
            ("arm", relax_tf.estimators.Reinforce(baseline_decay=0.9), "uniform", "sampled"),
        ),
    ],
)
def test_train_step_follows_the_enumerated_gradient_of_two_layers(below, above, prior, kl):
    model = two_layer_model(below, above, prior, kl)
    loss, expected = exact_gradients(model)
    measured = gradients_of_train_steps(model)
    for variable, exact, samples in zip(model_variables(model), expected, measured, strict=True):
        z = z_scores(samples, np.asarray(exact))
        assert np.abs(z).max() < 4.5, (variable.path, z)
    assert abs(z_scores(evaluated_losses(model), loss)) < 8


def evaluated_losses(model):
    arguments = {"batch_size": 4_000, "verbose": 0, "return_dict": True}
    return [model.evaluate(*many(20_000), **arguments)["loss"] for _ in range(5)]


def many(count):
    return np.tile(X, [count, 1]), np.tile(Y, [count, 1])


def test_unbiased_layer_below_a_pathwise_layer_follows_the_mixed_gradient():
    """With `concrete` above, the layer below must estimate the gradient of the relaxed cost."""
    model = two_layer_model("relaxed_rebar", "concrete")
    l1, l2 = model.get_layer("b1"), model.get_layer("b2")
    eps = l2.distribution(tf.zeros([40_000, 3])).noise(seed=0)

    with tf.GradientTape() as tape:
        total = 0.0
        dist1 = l1.distribution(tf.constant(X))
        for b1 in binary_states(3, (-1.0, 1.0)):
            b1 = b1[tf.newaxis]
            z2 = l2.distribution(b1).theta + eps
            b2 = tf.sigmoid(z2 / l2.estimator.temperature)
            hidden = model.get_layer("hidden")(tf.concat([tf.tile(b1, [len(eps), 1]), b2], -1))
            cost = tf.reduce_mean((model.get_layer("outputs")(hidden) - Y) ** 2)
            total += tf.exp(dist1.log_prob(b1))[0] * cost
    variables = model_variables(model)
    expected = tape.gradient(total, [v.value for v in variables])
    for exact, samples in zip(expected, gradients_of_train_steps(model), strict=True):
        # `expected` is itself a mean of 40 000 relaxed costs: about 1.2 times the tolerance.
        assert np.abs(z_scores(samples, np.asarray(exact))).max() < 5.5


def test_pathwise_estimates_agree_with_backpropagation():
    model = two_layer_model("concrete", "straight_through")
    x, y = many(8)
    with tf.GradientTape() as tape:
        result = model.estimate(x, y)
    g1 = result.estimates["b1"].gradient
    kernel = tape.gradient(result.surrogate, model.get_layer("b1").kernel.value)
    np.testing.assert_allclose(kernel, tf.transpose(tf.constant(x)) @ g1 / 8, rtol=1e-4, atol=1e-6)


def test_a_layer_called_twice_is_credited_for_both_calls():
    layer = relax_tf.StochasticBinaryLayer(3, "relaxed_rebar", (-1, 1), name="b")
    inputs = keras.Input([3])
    outputs = keras.layers.Dense(2, name="outputs")(layer(layer(inputs)))
    model = relax_tf.RelaxModel(inputs, outputs)
    model.compile(keras.optimizers.SGD(1.0), loss="mse")
    shake(model.trainable_variables, 0.7)

    with tf.GradientTape() as tape:
        total = 0.0
        first = layer.distribution(tf.constant(X))
        for b1 in binary_states(3, (-1.0, 1.0)):
            second = layer.distribution(b1[tf.newaxis])
            for b2 in binary_states(3, (-1.0, 1.0)):
                cost = tf.reduce_mean((model.get_layer("outputs")(b2[tf.newaxis]) - Y) ** 2)
                log_p = first.log_prob(b1[tf.newaxis]) + second.log_prob(b2[tf.newaxis])
                total += tf.exp(log_p)[0] * cost
    expected = tape.gradient(total, [v.value for v in model_variables(model)])
    assert set(model.estimate(X, Y).estimates) == {"b", "b:1"}
    for exact, samples in zip(expected, gradients_of_train_steps(model), strict=True):
        assert np.abs(z_scores(samples, np.asarray(exact))).max() < 4.5


@pytest.mark.parametrize(
    ("stack", "kl"),
    [
        (
            [(BINARY, "relaxed_rebar", "learned"), (CATEGORICAL, "relaxed_rebar", "learned")],
            "sampled",
        ),
        ([(NORMAL, "lax", "learned"), (CATEGORICAL, "relax", "learned")], "sampled"),
        *further(
            ([(BINARY, "relax", "uniform"), (CATEGORICAL, "rebar", "uniform")], "analytic"),
            ([(CATEGORICAL, "rebar", None), (BINARY, "relaxed_rebar", "learned")], "analytic"),
            ([(NORMAL, "reparameterization", "learned"), (BINARY, "rebar", None)], "sampled"),
            (
                [
                    (CATEGORICAL, "relaxed_rebar", "learned"),
                    (NORMAL, "lax", "standard"),
                    (BINARY, "rebar", "learned"),
                ],
                "analytic",
            ),
        ),
        (
            [
                (BINARY, "relaxed_rebar", None),
                (NORMAL, "reparameterization", "standard"),
                (CATEGORICAL, "relaxed_rebar", "uniform"),
            ],
            "sampled",
        ),
    ],
)
@pytest.mark.uncertified
def test_train_step_follows_the_exact_gradient_of_mixed_layers(stack, kl):
    model = mixed_model(*stack, kl=kl)
    variables = model_variables(model)
    with tf.GradientTape() as tape:
        loss = expected_loss(model)
    expected = tape.gradient(loss, [v.value for v in variables])
    assert_follows(model, expected)
    assert abs(z_scores(evaluated_losses(model), loss.numpy())) < 8


# Layers.


@pytest.mark.parametrize(
    ("layer", "event"),
    [
        (relax_tf.StochasticBinaryLayer(4, "relax", prior="learned"), [4]),
        (relax_tf.StochasticCategoricalLayer(2, 3, "rebar", prior="learned"), [2, 3]),
        (relax_tf.StochasticNormalLayer(4, "lax", prior="learned"), [4]),
    ],
    ids=["binary", "categorical", "normal"],
)
def test_layers_take_further_event_axes_and_describe_themselves(layer, event):
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    inputs = keras.Input([5, 3])
    outputs = again(inputs)
    assert outputs.shape == (None, 5, *event)
    model = relax_tf.RelaxModel(inputs, outputs)
    model.compile("sgd", loss=lambda y, p: keras.ops.mean(p, tuple(range(1, p.ndim))))
    x = np.ones([8, 5, 3], "f")
    assert np.isfinite(model.fit(x, x, verbose=0).history["loss"]).all()
    assert again.estimator.get_config() == layer.estimator.get_config()
    sample = again(tf.constant(x))
    assert sample.shape == [8, 5, *event]
    assert again.kl_divergence(again.distribution(tf.constant(x)), sample).shape == [8]


def test_layers_emit_means_by_choice():
    x = tf.ones([2, 3])
    for cls in (BINARY, CATEGORICAL, NORMAL):
        layer = cls(*SIZES[cls], inference="mean")
        np.testing.assert_array_equal(layer(x), layer.distribution(x).mean())


def test_normal_layer_trains_by_reparameterization_in_a_plain_keras_model():
    inputs = keras.Input([3])
    z = relax_tf.StochasticNormalLayer(4, "reparameterization", prior="standard")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(z))
    model.compile(keras.optimizers.Adam(0.05), loss="mse")
    losses = model.fit(*data(), epochs=60, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_rank_three_inputs_with_a_sampled_kl():
    inputs = keras.Input([4, 5])
    b = relax_tf.StochasticBinaryLayer(3, prior="learned", kl="sampled", name="b")(inputs)
    model = relax_tf.RelaxModel(inputs, keras.layers.Dense(1)(b))
    model.compile("sgd", loss="mse")
    estimate = model.estimate(tf.ones([6, 4, 5]), tf.ones([6, 4, 1])).estimates["b"]
    assert estimate.gradient.shape == [6, 4, 3]
    layer = model.get_layer("b")
    dist = layer.distribution(tf.ones([6, 4, 5]))
    exact = tf.reduce_mean(tf.stack([layer.kl_divergence(dist, dist.draw().b) for _ in range(500)]))
    layer.kl = "analytic"
    np.testing.assert_allclose(exact, tf.reduce_mean(layer.kl_divergence(dist, None)), atol=0.05)


def test_layer_config_can_be_reused_with_another_input_size():
    model = small_model()
    layer = relax_tf.StochasticBinaryLayer.from_config(model.get_layer("b").get_config())
    assert layer(tf.zeros([2, 7])).shape == [2, 4]
