"""Noise outside of any pass: layers with one seed, in plain Keras models and direct calls."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf


def layer(estimator="concrete"):
    return relax_tf.StochasticBinaryLayer(50, estimator, seed=7, kernel_initializer="zeros")


class Two(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.second = layer(), layer()

    def call(self, x):
        return self.first(x), self.second(x)


def functional(model_class=keras.Model):
    inputs = keras.Input([3])
    return model_class(inputs, [layer()(inputs), layer()(inputs)])


def sequence():
    """Two layers, one after the other, in a model inside a model."""
    inner = keras.Sequential([keras.Input([50]), layer()])
    inputs = keras.Input([3])
    first = layer()(inputs)
    return keras.Model(inputs, [first, inner(first)])


KINDS = {
    "functional": functional,
    "subclass": Two,
    "nested": sequence,
    "relax_model": lambda: functional(relax_tf.RelaxModel),
}
X = tf.zeros([4, 3])


def run(model, mode):
    function = tf.function(model) if mode == "graph" else model
    return [np.array(function(X)) for _ in range(2)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_layers_of_one_seed_draw_different_noise_reproducibly(kind, mode):
    draws = run(KINDS[kind](), mode)
    for first, second in draws:
        assert 0.3 < (first != second).mean() < 0.7
    assert (draws[0] != draws[1]).any()
    np.testing.assert_array_equal(draws, run(KINDS[kind](), mode))  # with other names
    other_mode = "graph" if mode == "eager" else "eager"
    np.testing.assert_array_equal(draws, run(KINDS[kind](), other_mode))


def test_training_in_a_plain_model_draws_different_noise():
    first, second = Two()(X, training=True)
    assert np.abs(np.corrcoef(np.ravel(first), np.ravel(second))[0, 1]) < 0.3


def test_one_layer_draws_from_its_generator_as_it_is():
    alone = layer()
    model = keras.Sequential([keras.Input([3]), alone])
    dist = alone.distribution(X)
    generator = keras.random.SeedGenerator(7)
    for _ in range(3):
        np.testing.assert_array_equal(model(X), dist.draw(generator).b)


def test_a_layer_called_twice_moves_its_generator_on():
    shared = layer()
    inputs = keras.Input([3])
    first, second = keras.Model(inputs, [shared(inputs), shared(inputs)])(X)
    assert 0.3 < np.mean(np.array(first) != np.array(second)) < 0.7
