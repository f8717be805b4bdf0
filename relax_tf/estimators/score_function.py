"""The score-function estimator (eq. 2), REINFORCE."""

from typing import Any

import keras
import tensorflow as tf

from relax_tf.distributions.base import Distribution, over_event
from relax_tf.estimators.base import Estimator


def score_function_gradient(dist: Distribution, b: tf.Tensor, credit: tf.Tensor) -> Any:
    """`credit * d log p(b|theta) / d theta` (eq. 2), per example.

    Args:
        dist: the distribution, theta of shape `[batch, *event]`.
        b: samples `[batch, *event]`.
        credit: `[batch]`, the cost, or the cost less a baseline that does not depend on `b`.

    Returns:
        The shape (structure) of theta. Unbiased.
    """
    return tf.nest.map_structure(lambda score: over_event(credit, score) * score, dist.score(b))


@keras.saving.register_keras_serializable("relax_tf")
class Reinforce(Estimator):
    """REINFORCE: `f(b) d log p(b|theta) / d theta` (eq. 2; Williams 1992).

    Unbiased, one evaluation of the cost, asks nothing of it. High variance.

    Example:

    >>> estimator = relax_tf.estimators.Reinforce()
    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([1, 2]))
    >>> estimator.estimate(dist, lambda b: 3 * b[:, 0], seed=0).gradient.shape
    TensorShape([1, 2])
    """

    def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
        return score_function_gradient(dist, draw.b, f_b), None
