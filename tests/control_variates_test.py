"""The networks r_phi: closed-form derivatives against backpropagation, saving, inputs apart."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf import control_variates
from relax_tf.control_variates import MLP, ControlVariate
from relax_tf.step.sharing import shared_layers


def shaken_mlp(hidden_units, context_size, dtype="float64", **kwargs):
    network = MLP(hidden_units, dtype=dtype, **kwargs)
    context_shape = None if context_size is None else (None, context_size)
    control_variates.build_network(network, theta=(None, 3), context=context_shape)
    random = np.random.RandomState(0)
    for variable in network.variables:
        variable.assign(random.randn(*variable.shape))
    return network


@pytest.mark.parametrize("context_size", [None, 7])
@pytest.mark.parametrize("hidden_units", [[4], [6, 5], [6, 5, 4]])
def test_closed_form_is_backpropagation_through_backpropagation(hidden_units, context_size):
    network = shaken_mlp(hidden_units, context_size)
    random = np.random.RandomState(1)
    z, v = (tf.constant(random.randn(5, 3)) for _ in range(2))
    credit = tf.constant(random.randn(5))
    context = None if context_size is None else tf.constant(random.randn(5, context_size))

    def differentiated(function):
        with tf.GradientTape() as tape:
            c, dc_dz = function(z, context)
            loss = tf.reduce_sum(credit * c**2) + tf.reduce_sum(v * dc_dz**2)
        return c, dc_dz, *tape.gradient(loss, network.trainable_variables)

    closed = differentiated(network.value_and_derivative)
    taped = differentiated(
        lambda z, context: ControlVariate.value_and_derivative(network, z, context)
    )
    for ours, theirs in zip(closed, taped, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_other_activations_are_differentiated_too():
    network = shaken_mlp([6, 5], None, activation="tanh")
    z = tf.constant(np.random.RandomState(1).randn(5, 3))
    c, dc_dz = network.value_and_derivative(z)
    step = tf.constant([[0.0, 1e-6, 0.0]], tf.float64)
    difference = (network(z + step) - network(z - step))[:, 0] / 2e-6
    np.testing.assert_allclose(c, network(z)[:, 0])
    np.testing.assert_allclose(dc_dz[:, 1], difference, rtol=1e-6, atol=1e-8)


def test_parts_apart_are_the_parts_side_by_side():
    network = shaken_mlp([6], 2)
    dense = keras.layers.Dense(6, "relu", dtype="float64")
    dense.build((None, 5))
    kernel = np.concatenate([network.of_z.kernel, network.of_context.kernel])
    dense.set_weights([kernel, network.of_z.bias])
    z, context = tf.random.normal([4, 3], dtype="float64"), tf.ones([4, 2], "float64")
    expected = network.output_layer(dense(tf.concat([z, context], -1)))
    np.testing.assert_allclose(network(z, context), expected)


def test_first_layer_is_initialised_as_one():
    network = MLP([2000])
    control_variates.build_network(network, theta=(None, 10), context=(None, 90))
    for dense in (network.of_z, network.of_context):
        assert abs(np.std(dense.kernel) - np.sqrt(2 / 100)) < 0.01


def test_mlp_round_trip():
    network = shaken_mlp([6, 5], 7, dtype="float32", activation="elu")
    config = keras.saving.serialize_keras_object(network)
    copy = keras.saving.deserialize_keras_object(config)
    copy.set_weights(network.get_weights())
    z, context = tf.ones([2, 3]), tf.ones([2, 7])
    np.testing.assert_array_equal(copy(z, context), network(z, context))


def model_with(*control_variates, trunk=()):
    """A model whose first layers are `trunk`, and a stochastic layer for each control variate."""
    inputs = keras.Input([4])
    x = inputs
    for layer in trunk:
        x = layer(x)
    for k, network in enumerate(control_variates):
        estimator = relax_tf.estimators.Relax(control_variate=network)
        x = relax_tf.StochasticBinaryLayer(4, estimator, name=f"b{k}")(x)
    return relax_tf.RelaxModel(inputs, x)


def network(*hidden):
    return keras.Sequential([*hidden, keras.layers.Dense(1)])


def test_layers_shared_with_the_model_are_found():
    def shared(give, take):
        """Names, if `take` of a layer is in the trunk and `give` of it in a control variate."""
        dense = keras.layers.Dense(8, name="shared")  # from 12 = 8 + 4 numbers, in both places
        trunk = [keras.layers.Dense(12, name="first"), *take(dense)]
        return shared_layers(model_with(network(*give(dense)), None, trunk=trunk))

    def itself(dense):
        return [dense]

    def nothing(dense):
        return [keras.layers.Dense(8)]

    def deep(dense):
        return [keras.Sequential([keras.Sequential([dense], name="inner")], name="outer")]

    assert shared(nothing, itself) == shared(itself, nothing) == {}
    assert shared(itself, itself) == {"b0": ["shared"]}
    assert shared(itself, deep) == shared(deep, itself) == {"b0": ["shared"]}
    outer = deep(keras.layers.Dense(8, name="shared"))
    assert shared(lambda _: outer, lambda _: outer) == {"b0": ["inner", "outer", "shared"]}


def test_a_baseline_that_is_shared_is_found():
    dense = keras.layers.Dense(1, name="value")
    inputs = keras.Input([4])
    b = relax_tf.StochasticBinaryLayer(4, relax_tf.estimators.Nvil(baseline=dense), name="b")
    model = relax_tf.RelaxModel(inputs, [b(inputs), dense(inputs)])
    assert shared_layers(model) == {"b": ["value"]}


def test_layers_that_estimators_share_among_themselves_are_not_the_model_s():
    one = network()
    assert shared_layers(model_with(one, one)) == {}


def test_shared_layers_of_a_subclassed_model():
    class Model(relax_tf.RelaxModel):
        def __init__(self):
            super().__init__()
            self.head = [keras.layers.Dense(1, name="head")]
            estimator = relax_tf.estimators.Relax(control_variate=self.head[0])
            self.b = relax_tf.StochasticBinaryLayer(4, estimator)

    model = Model()
    assert shared_layers(model) == {model.b.estimator.name: ["head"]}
