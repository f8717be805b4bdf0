"""The shipped loss, and that our costs per example average to Keras's scalars."""

import numpy as np
import tensorflow as tf

from relax_tf.losses import BernoulliNegativeLogLikelihood


def masked(y_pred, mask):
    """A copy of a tensor with Keras's mask on it (None: without)."""
    y_pred = tf.identity(y_pred)
    if mask is not None:
        y_pred._keras_mask = tf.constant(mask)
    return y_pred


def test_masked_steps_are_left_out_of_the_log_likelihood():
    random = np.random.RandomState(0)
    for batch, time in ((3, 3), (4, 3)):  # equal sizes would broadcast if axes were mixed up
        x, logits = random.rand(2, batch, time, 5).astype("float32")
        mask = random.rand(batch, time) < 0.6
        logits[~mask] = np.nan  # nothing of a masked step may be read
        x[~mask] = np.nan
        logits = tf.constant(logits)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            y_pred = masked(logits, mask)
            loss = BernoulliNegativeLogLikelihood(reduction=None)(x, y_pred)
        nll = tf.nn.sigmoid_cross_entropy_with_logits(x, logits).numpy()
        expected = np.where(mask[..., np.newaxis], nll, 0).sum((1, 2))
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        gradient = tape.gradient(loss, logits).numpy()
        np.testing.assert_array_equal(gradient[~mask], 0)
        assert np.isfinite(gradient).all()
        assert (gradient[mask] != 0).all()
        scalar = BernoulliNegativeLogLikelihood()(x, y_pred)
        np.testing.assert_allclose(scalar, expected.mean(), rtol=1e-5)
