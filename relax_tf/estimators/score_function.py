"""The score-function estimator (eq. 2), REINFORCE."""

from typing import Any

import keras
import tensorflow as tf

from relax_tf.distributions.base import Distribution, over_event
from relax_tf.estimators.base import Estimator
from relax_tf.estimators.moving_moments import MovingMoments
from relax_tf.validation import decay_rate


def score_function_gradient(dist: Distribution, b: tf.Tensor, credit: tf.Tensor) -> Any:
    """`credit * d log p(b|theta) / d theta` (eq. 2), per example.

    Args:
        dist: the distribution, theta of shape `[batch, *event]`.
        b: samples `[..., batch, *event]`.
        credit: `[..., batch]`, the cost, or the cost less a baseline that does not depend on `b`.

    Returns:
        The shape (structure) of theta, after the leading axes of `b`. Unbiased.

    Raises:
        ValueError: if `b` or `credit` has another shape.
    """
    leading = b.shape.rank - dist.shape.rank
    if leading < 0 or not b.shape[leading:].is_compatible_with(dist.shape):
        raise ValueError(
            f"`b` must have the shape of samples, [..., *{tuple(dist.shape)}]. "
            f"Received shape: {tuple(b.shape)}"
        )
    if not credit.shape.is_compatible_with(b.shape[: leading + 1]):
        raise ValueError(
            f"`credit` must have one value per sample, shape {tuple(b.shape[: leading + 1])}. "
            f"Received shape: {tuple(credit.shape)}"
        )
    return tf.nest.map_structure(lambda score: over_event(credit, score) * score, dist.score(b))


@keras.saving.register_keras_serializable("relax_tf")
class Reinforce(Estimator):
    """REINFORCE: `(f(b) - baseline) d log p(b|theta) / d theta` (eq. 2; Williams 1992).

    Unbiased, one evaluation of the cost, asks nothing of it. High variance. The baseline is an
    average of the costs of past batches, never of the present one; every estimate updates it.

    Args:
        baseline_decay: None for no baseline, or a number in [0, 1), such as 0.9: the weight of a
            batch in the moving average relative to that of the next one.

    Raises:
        TypeError, ValueError: if `baseline_decay` is neither None nor a number in [0, 1).

    Example:

    >>> estimator = relax_tf.estimators.Reinforce(baseline_decay=0.9)
    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([1, 2]))
    >>> first, second = (
    ...     estimator.estimate(dist, lambda b: b[:, 0] + 5, draw=dist.draw(seed=0)).gradient
    ...     for _ in range(2)
    ... )
    >>> bool(tf.reduce_all(second == 0))  # the cost is what it was in the past
    True
    """

    def __init__(self, baseline_decay: float | None = None, **kwargs):
        super().__init__(**kwargs)
        self.baseline_decay = baseline_decay
        self.past = None
        if baseline_decay is not None:
            self.baseline_decay = decay_rate(baseline_decay, "baseline_decay")
            self.past = MovingMoments(self.baseline_decay, dtype=self.dtype_policy, name="past")

    def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
        baseline = 0.0 if self.past is None else tf.cast(self.past.mean(), f_b.dtype)
        return score_function_gradient(dist, draw.b, f_b - baseline), None

    def observe(self, f_b, context):
        if self.past is not None:
            self.past.update(f_b)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "baseline_decay": self.baseline_decay}
