"""What layers emit outside training: samples, means, modes; and means as outputs of a model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from relax_tf.distributions import Bernoulli, Normal, OneHotCategorical
from tests.enumeration import tiled, worst_z
from tests.models_test import Subclassed, data, small_model
from tests.problems import shake

BINARY, CATEGORICAL, NORMAL = (
    relax_tf.StochasticBinaryLayer,
    relax_tf.StochasticCategoricalLayer,
    relax_tf.StochasticNormalLayer,
)
SIZES = {BINARY: (2,), CATEGORICAL: (2, 3), NORMAL: (2,)}

# The mode.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_modes_are_the_most_probable_samples(dtype):
    theta = tf.constant(np.random.RandomState(0).normal(size=[4, 3]), dtype)
    for dist in (Bernoulli(theta, (-1, 1)), OneHotCategorical(theta[:, tf.newaxis])):
        states = dist.enumerate()[:, tf.newaxis]
        best = tf.argmax(dist.log_prob(states), 0)
        np.testing.assert_array_equal(dist.mode(), tf.gather(states[:, 0], best))
        assert dist.mode().dtype == dtype
    np.testing.assert_array_equal(Normal(theta, tf.exp(theta)).mode(), theta)


def test_modes_of_infinite_and_equal_logits():
    inf = np.inf
    modes = Bernoulli([[inf, -inf, 0.0]]).mode()
    np.testing.assert_array_equal(modes, [[1, 0, 0]])
    modes = OneHotCategorical([[[-inf, -5.0, -inf], [1.0, 1.0, 0.0]]]).mode()
    np.testing.assert_array_equal(modes, [[[0, 1, 0], [1, 0, 0]]])


@pytest.mark.parametrize("cls", SIZES)
@pytest.mark.parametrize("inference", ["mean", "mode"])
def test_layers_emit_means_and_modes_by_choice(cls, inference):
    layer = cls(*SIZES[cls], inference=inference)
    x = tf.constant(data()[0])
    np.testing.assert_array_equal(layer(x), getattr(layer.distribution(x), inference)())
    assert type(layer).from_config(layer.get_config()).inference == inference


def test_other_words_are_refused_and_change_nothing():
    layer = BINARY(2)
    for value in ("median", None, "Mode"):
        with pytest.raises(ValueError, match=r"\['sample', 'mean', 'mode'\]. Received: "):
            layer.inference = value
        with pytest.raises(ValueError, match="`inference`"):
            BINARY(2, inference=value)
    assert layer.inference == "sample"


@pytest.mark.parametrize("maker", [small_model, Subclassed])
def test_assignment_after_training_takes_effect_in_evaluate_and_predict(maker):
    model = maker()
    model.compile("adam", loss="mse")
    x, y = data()
    model.fit(x, y, verbose=0)
    layer = next(layer for layer in model.layers if isinstance(layer, BINARY))
    top = model.layers[-1]
    model.predict(x, verbose=0), model.evaluate(x, y, verbose=0)  # traced with samples
    for inference in ("mode", "mean", "mode"):
        layer.inference = inference
        expected = top(getattr(layer.distribution(tf.constant(x)), inference)())
        np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)
        loss = model.evaluate(x, y, verbose=0)
        np.testing.assert_allclose(loss, np.mean((expected - y) ** 2), rtol=1e-5)
    layer.inference = "sample"
    assert (model.predict(x, verbose=0) != model.predict(x, verbose=0)).any()


def test_kl_where_the_mode_is_emitted():
    x = tf.constant(data()[0])
    layer = BINARY(3, "reinforce", prior="learned", kl="sampled", inference="mode")
    model = relax_tf.RelaxModel(inputs := keras.Input([3]), layer(inputs))
    model.compile("sgd")
    dist = layer.distribution(x)
    at_mode = dist.log_prob(dist.mode()) + 3 * np.log(2)
    np.testing.assert_allclose(model.evaluate(x, verbose=0), np.mean(at_mode), rtol=1e-5)
