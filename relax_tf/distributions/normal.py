"""Normal variables: continuous, `b = z = loc + scale eps`."""

from typing import Any

import numpy as np
import tensorflow as tf

from relax_tf.distributions import noise
from relax_tf.distributions.base import Distribution, Draw, at_least_float32, sum_event
from relax_tf.distributions.probability import tfp_distributions


class Normal(Distribution):
    """Independent normal variables; `theta` is the pair `(loc, scale)`.

    Args:
        loc: the mean, shape `[batch, *event]`, any floating dtype; computations are in float32 at
            least.
        scale: the standard deviation, positive, shape and dtype of `loc`.

    Raises:
        TypeError: if `loc` or `scale` is not floating point.
        ValueError: if they lack a batch axis or differ in shape or dtype, or if `scale` is not
            positive where its values are known (not in a graph).

    Example:

    >>> dist = relax_tf.distributions.Normal(tf.zeros([2, 3]), tf.ones([2, 3]))
    >>> estimator = relax_tf.estimators.get("reparameterization")
    >>> estimate = estimator.estimate(dist, lambda b: tf.reduce_sum(b**2, -1), seed=0)
    >>> d_loc, d_scale = estimate.gradient
    >>> d_loc.shape
    TensorShape([2, 3])
    """

    discrete = False

    def __init__(self, loc: Any, scale: Any):
        super().__init__((at_least_float32(loc, "loc"), at_least_float32(scale, "scale")))
        if self.loc.dtype != self.scale.dtype:
            raise ValueError(
                "`loc` and `scale` must have the same dtype. "
                f"Received: {self.loc.dtype.name} and {self.scale.dtype.name}"
            )
        if not self.loc.shape.is_compatible_with(self.scale.shape):
            raise ValueError(
                "`loc` and `scale` must have the same shape [batch, *event]. "
                f"Received shapes: {tuple(self.loc.shape)} and {tuple(self.scale.shape)}"
            )
        known = tf.get_static_value(self.scale)
        if known is not None and np.any(known <= 0):
            raise ValueError(
                f"`scale` must be positive. Received values from {known.min()} to {known.max()}"
            )

    @property
    def loc(self) -> tf.Tensor:
        return self.theta[0]

    @property
    def scale(self) -> tf.Tensor:
        return self.theta[1]

    def with_theta(self, theta: tuple[tf.Tensor, tf.Tensor]) -> "Normal":
        return Normal(*theta)

    # Samples.

    def noise(self, seed: Any = None, sample_shape: tuple[int, ...] = ()) -> tf.Tensor:
        return noise.normal(self._noise_shape(sample_shape), self.dtype, self._seed(seed))

    def from_noise(self, eps: tf.Tensor) -> Draw:
        z = self.loc + self.scale * eps
        return Draw(z, z)

    def harden(self, z: tf.Tensor) -> tf.Tensor:
        """`z`: a continuous sample is its own `z`."""
        return z

    def relax(self, z: tf.Tensor, temperature: float | tf.Tensor) -> tf.Tensor:
        """`z`: there is nothing to relax."""
        del temperature
        return z

    def mean(self) -> tf.Tensor:
        """`E[b] = loc`, shape `[batch, *event]`."""
        return self.loc

    def mode(self) -> tf.Tensor:
        """The most probable sample, `loc`, shape `[batch, *event]`."""
        return self.loc

    # Derivatives with respect to theta, as pairs.

    def score(self, b: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`d log p(b|theta) / d (loc, scale)`: `eps / scale` and `(eps^2 - 1) / scale`."""
        eps = self._standardized(b)
        return eps / self.scale, (eps**2 - 1) / self.scale

    def reparameterization_vjp(self, z: tf.Tensor, w: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`(dz / d (loc, scale))^T w`: `w` and `w eps`."""
        return w, w * self._standardized(z)

    def _standardized(self, z: tf.Tensor) -> tf.Tensor:
        return (z - self.loc) / self.scale

    # Information, in nats, summed over the event.

    def log_prob(self, b: tf.Tensor) -> tf.Tensor:
        """The density `log p(b|theta)`, shape `[..., batch]`."""
        log_prob = tfp_distributions().Normal(*self.theta).log_prob(tf.cast(b, self.dtype))
        return sum_event(log_prob, 1 + log_prob.shape.rank - self.shape.rank)

    def entropy(self) -> tf.Tensor:
        """The differential entropy `-E log p(b|theta)`, shape `[batch]`."""
        return sum_event(tfp_distributions().Normal(*self.theta).entropy())

    def kl_divergence(self, other: "Normal") -> tf.Tensor:
        """`KL(self || other)`, shape `[batch]`."""
        self.check_same_family(other)
        tfd = tfp_distributions()
        p, q = tfd.Normal(self.loc, self.scale), tfd.Normal(other.loc, other.scale)
        return sum_event(tfd.kl_divergence(p, q))
