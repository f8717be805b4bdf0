"""ARM and DisARM: antithetic pairs of Bernoulli samples.

A uniform `u` gives `b_1 = 1[theta + logit(u) > 0]`, its mirror image `1 - u` gives
`b_2 = 1[theta - logit(u) > 0]`. Only the difference of the two costs enters the estimate.

| estimator | factor of `f(b_1) - f(b_2)`, per coordinate                   |
|-----------|----------------------------------------------------------------|
| `arm`     | `u - 1/2`                                                      |
| `disarm`  | its expectation given the pair, `(b_1 - b_2) sigmoid(|theta|) / 2` |
"""

from typing import Any

import keras
import tensorflow as tf

from relax_tf.distributions.base import over_event
from relax_tf.distributions.bernoulli import Bernoulli
from relax_tf.estimators.multi_sample import MultiSampleEstimator


def arm_gradient(dist: Bernoulli, z_1: tf.Tensor, f_b: tf.Tensor) -> tf.Tensor:
    """Augment-REINFORCE-merge (Yin & Zhou 2019, theorem 1), per example:

        (f(b_1) - f(b_2)) (u - 1/2)

    Args:
        dist: the distribution, theta of shape `[batch, *event]`.
        z_1: `theta + logit(u)`, `[batch, *event]`.
        f_b: the costs of both samples, `[2, batch]`.

    Returns:
        The shape of theta. Unbiased.

    Raises:
        ValueError: if there are not two costs.
    """
    _check_pair(f_b, "f_b")
    u = tf.sigmoid(z_1 - dist.theta)
    return over_event(f_b[0] - f_b[1], u) * (u - 0.5)


def disarm_gradient(dist: Bernoulli, b: tf.Tensor, f_b: tf.Tensor) -> tf.Tensor:
    """DisARM (Dong, Mnih & Tucker 2020, section 3), per example:

        (1/2) (f(b_1) - f(b_2)) (-1)^{b_2} 1[b_1 != b_2] sigmoid(|theta|)

    where `(-1)^{b_2} 1[b_1 != b_2]` is `b_1 - b_2`. ARM with `u` integrated out: given that the
    two samples differ in a coordinate, `|u - 1/2|` there is uniform above
    `sigmoid(|theta|) - 1/2` (given that they agree, the mean of `u - 1/2` is zero), so the
    variance is never above ARM's.

    Args:
        dist: the distribution, theta of shape `[batch, *event]`.
        b: both samples, `[2, batch, *event]`.
        f_b: their costs, `[2, batch]`.

    Returns:
        The shape of theta. Unbiased.

    Raises:
        ValueError: if there are not two samples and two costs.
    """
    _check_pair(b, "b")
    _check_pair(f_b, "f_b")
    b_1, b_2 = tf.unstack(dist.indicator(b))
    factor = 0.5 * (b_1 - b_2) * tf.sigmoid(tf.abs(dist.theta))
    return over_event(f_b[0] - f_b[1], factor) * factor


def _check_pair(values: tf.Tensor, name: str) -> None:
    if values.shape.rank == 0 or values.shape[0] != 2:
        raise ValueError(
            f"`{name}` must have a first axis of size 2, for the two samples of a pair. "
            f"Received shape: {tuple(values.shape)}"
        )


class AntitheticEstimator(MultiSampleEstimator):
    """Base of the estimators on antithetic pairs. Of a draw that is given the first half counts."""

    defined_for = ("discrete",)
    families = (Bernoulli,)

    def __init__(self, **kwargs):
        super().__init__(num_samples=2, **kwargs)

    def complete_draw(self, dist, eps, seed):
        return dist.from_noise(tf.stack([eps, -eps]))

    def _checked_draw(self, dist, draw, seed):
        first = super()._checked_draw(dist, draw, seed).z[0]
        return self.complete_draw(dist, first - dist.theta, None)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["num_samples"]
        return config


@keras.saving.register_keras_serializable("relax_tf")
class Arm(AntitheticEstimator):
    """ARM: one antithetic pair, `(f(b_1) - f(b_2)) (u - 1/2)` (Yin & Zhou 2019).

    Unbiased, two evaluations of the cost (in one call), asks nothing of it. Bernoulli variables
    only. `disarm` costs the same and never has more variance.

    Raises:
        ValueError: from `estimate` and from layers, for any other distribution.

    Example:

    >>> estimator = relax_tf.estimators.Arm()
    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([4, 3]))
    >>> estimate = estimator.estimate(dist, lambda b: tf.reduce_sum(b, -1), seed=0)
    >>> bool(tf.reduce_all(estimate.sample[0] == 1 - estimate.sample[1]))  # where theta is 0
    True
    """

    def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
        return arm_gradient(dist, draw.z[0], f_b), None


@keras.saving.register_keras_serializable("relax_tf")
class Disarm(AntitheticEstimator):
    """DisARM: ARM with its noise integrated out (Dong, Mnih & Tucker 2020).

    Unbiased, two evaluations of the cost (in one call), asks nothing of it. Bernoulli variables
    only. In a model the hard pass has the first sample, a replay the second; parameters that the
    samples feed learn from the first.

    Raises:
        ValueError: from `estimate` and from layers, for any other distribution.

    Example:

    >>> estimator = relax_tf.estimators.Disarm()
    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([1, 3]))
    >>> estimator.estimate(dist, lambda b: b[..., 0]).gradient[0, 0].numpy()
    np.float32(0.25)
    """

    def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
        return disarm_gradient(dist, draw.b, f_b), None
