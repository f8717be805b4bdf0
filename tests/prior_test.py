"""Samples from the priors of stochastic layers, and their entropies."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import relax_tf
from relax_tf.distributions import Bernoulli, Normal, OneHotCategorical
from tests.problems import shake, z_scores

tfd = tfp.distributions

LAYERS = {
    "binary": lambda **a: relax_tf.StochasticBinaryLayer(3, support=(-1, 1), **a),
    "categorical": lambda **a: relax_tf.StochasticCategoricalLayer(2, 3, **a),
    "normal": lambda **a: relax_tf.StochasticNormalLayer(3, **a),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("front", [[4_000], [1_000, 2, 2]])
def test_samples_of_a_learned_prior_have_its_mean_at_every_position(kind, front):
    layer = LAYERS[kind](prior="learned")
    posterior = layer(keras.Input([*front[1:], 5]))
    shake(layer.trainable_variables, 0.7)
    samples = layer.sample_prior(front, seed=1)
    assert tuple(samples.shape) == (*front, *posterior.shape[len(front) :])
    mean = layer.prior_distribution().mean()
    assert np.abs(mean - mean[..., :1]).max() > 0.1  # units differ
    assert np.abs(z_scores(samples, np.broadcast_to(mean[0], samples.shape[1:]))).max() < 4.5
    other = layer.sample_prior(front)
    assert np.any(other != layer.sample_prior(front))
    np.testing.assert_array_equal(samples, layer.sample_prior(front, seed=1))


def test_what_has_no_prior_yet_or_at_all_says_so():
    layer = relax_tf.StochasticBinaryLayer(3, prior="learned", name="b")
    with pytest.raises(ValueError, match="'b' has not been built: call it first"):
        layer.sample_prior([2])
    layer(keras.Input([2]))
    with pytest.raises(ValueError, match="`shape` must be"):
        layer.sample_prior([0])
    layer = relax_tf.StochasticBinaryLayer(3, name="b")
    layer(keras.Input([2]))
    with pytest.raises(ValueError, match="'b' has no prior"):
        layer.sample_prior([2])


def test_entropies_agree_with_tfp():
    theta, scale = tf.random.stateless_normal([6, 2, 3], [1, 2]) * 3, tf.ones([6, 2, 3]) * 0.3
    pairs = [
        (Bernoulli(theta), tfd.Bernoulli(logits=theta), [-2, -1]),
        (OneHotCategorical(theta), tfd.OneHotCategorical(logits=theta), [-1]),
        (Normal(theta, scale), tfd.Normal(theta, scale), [-2, -1]),
    ]
    for ours, theirs, axes in pairs:
        np.testing.assert_allclose(ours.entropy(), tf.reduce_sum(theirs.entropy(), axes), 1e-5)


@pytest.mark.parametrize("family", [Bernoulli, OneHotCategorical])
@pytest.mark.parametrize("logit", [1e4, np.inf])
def test_sure_variables_have_no_entropy_and_no_slope(family, logit):
    theta = tf.constant([[-logit, 0.0, 0.0], [0.0, 0.0, -logit]])
    with tf.GradientTape() as tape:
        tape.watch(theta)
        entropy = family(theta).entropy()
    expected = 2 * np.log(2) if family is Bernoulli else np.log(2)
    np.testing.assert_allclose(entropy, [expected] * 2, 1e-6)
    np.testing.assert_allclose(tape.gradient(entropy, theta), np.zeros([2, 3]), atol=1e-6)
