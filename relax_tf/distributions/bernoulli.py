"""Bernoulli variables as thresholded logistic ones: `b = 1[z > 0]`, `z = theta + logit(u)`."""

from typing import Any

import numpy as np
import tensorflow as tf

from relax_tf.distributions import noise
from relax_tf.distributions.base import (
    INFINITE_LOGIT,
    Distribution,
    Draw,
    at_least_float32,
    flat_event,
    infinite_where,
    over_event,
    stand_in_logit,
    sum_event,
)
from relax_tf.distributions.probability import tfp_distributions
from relax_tf.validation import positive_if_number


class Bernoulli(Distribution):
    """Independent binary variables with logits `theta`, for gradient estimation.

    Args:
        logits: `theta = log p(b=1) / p(b=0)`, shape `[batch, *event]`, any floating dtype;
            computations are in float32 at least. Infinite logits (or beyond 5e4) are sure values:
            samples and relaxed samples have them, and the gradient there is 0. `theta` has finite
            numbers in their place.
        support: the pair of values that the cost sees for the indicator's 0 and 1. It relabels
            samples and changes nothing else.

    Raises:
        TypeError: if `logits` are not floating point.
        ValueError: if `logits` lack a batch axis or `support` is not an increasing pair of finite
            numbers.

    Example:

    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([2, 3]), support=(-1, 1))
    >>> b, z = dist.draw(seed=0)
    >>> bool(tf.reduce_all(b == tf.sign(z)))
    True
    """

    discrete = True

    def __init__(self, logits: Any, support: tuple[float, float] = (0, 1)):
        super().__init__(at_least_float32(logits, "logits"))
        self.support = check_support(support)
        self._fixed = tf.abs(self.theta) > INFINITE_LOGIT
        finite = tf.sign(self.theta) * stand_in_logit(self.dtype)
        self.theta = tf.where(self._fixed, tf.stop_gradient(finite), self.theta)

    def zero_where_fixed(self, values):
        return tf.where(self._fixed, tf.zeros([], values.dtype), values)

    def _fixed_value(self) -> tf.Tensor:
        """The indicator of the sure value where there is one."""
        return tf.cast(self.theta > 0, self.dtype)

    @property
    def logits(self) -> tf.Tensor:
        return self.theta

    def with_theta(self, theta: tf.Tensor) -> "Bernoulli":
        return Bernoulli(theta, self.support)

    # Samples.

    def noise(self, seed: Any = None, sample_shape: tuple[int, ...] = ()) -> tf.Tensor:
        return noise.logistic(self._noise_shape(sample_shape), self.dtype, self._seed(seed))

    def from_noise(self, eps: tf.Tensor) -> Draw:
        z = self.theta + eps
        return Draw(self.harden(z), z)

    def harden(self, z: tf.Tensor) -> tf.Tensor:
        """`H(z) = 1[z > 0]`, in the support."""
        return self._label(tf.cast(z > 0, self.dtype))

    def relax(self, z: tf.Tensor, temperature: float | tf.Tensor) -> tf.Tensor:
        """The Concrete relaxation of `H` (eq. 4), `sigmoid(z / temperature)` in the support."""
        relaxed = tf.sigmoid(z / positive_if_number(temperature, "temperature"))
        return self._label(tf.where(self._fixed, self._fixed_value(), relaxed))

    def mean(self) -> tf.Tensor:
        """`E[b]` in the support, shape `[batch, *event]`."""
        return self._label(tf.sigmoid(self.theta))

    def mode(self) -> tf.Tensor:
        """The most probable sample, shape `[batch, *event]`; of equal probabilities the lower."""
        return self.harden(self.theta)

    def enumerate(self) -> tf.Tensor:
        """All samples of one event, shape `[2 ** n, *event]` for n variables."""
        return self._all_states(np.array(self.support), self.shape[1:])

    def indicator(self, b: tf.Tensor) -> tf.Tensor:
        """The 0/1 indicator (or its relaxation) behind a value of the support."""
        lo, hi = self.support
        return (tf.cast(b, self.dtype) - lo) / (hi - lo)

    def _label(self, indicator: tf.Tensor) -> tf.Tensor:
        lo, hi = self.support
        return lo + (hi - lo) * indicator

    def probabilities(self) -> tf.Tensor:
        """The mean of the indicators, `sigmoid(theta)`: shape of theta."""
        return tf.sigmoid(self.theta)

    # Derivatives with respect to theta.

    def score(self, b: tf.Tensor) -> tf.Tensor:
        """`d log p(b|theta) / d theta = b - sigmoid(theta)`, shape of `b`."""
        return self.indicator(b) - tf.sigmoid(self.theta)

    def reparameterization_vjp(self, z: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
        """`(dz / d theta)^T w`: `z = theta + logit(u)` makes it `w`."""
        del z
        return self.zero_where_fixed(w)

    def conditional_vjp(self, b: tf.Tensor, z_tilde: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
        """`(dz_tilde / d theta)^T w` where `z_tilde ~ p(z|b)` keeps its own noise fixed.

        The inverse CDF of the truncated logistic, differentiated in closed form:
        `dz_tilde / d theta = (1 - exp(-|z_tilde|)) p(b|theta)`. Far from the threshold the
        truncation is felt with the full probability of `b`; at the threshold not at all.
        """
        theta = self.theta
        prob_b = tf.where(self.indicator(b) > 0.5, tf.sigmoid(theta), tf.sigmoid(-theta))
        return self.zero_where_fixed(-tf.math.expm1(-tf.abs(z_tilde)) * prob_b * w)

    def conditional_draw(self, b: tf.Tensor, seed: Any = None) -> tf.Tensor:
        """Draws `z_tilde ~ p(z|b)` with noise of its own, shape of `b`.

        In logit space: `softplus(logit(v) + softplus(theta))` for `b = 1`, and its mirror image
        for `b = 0`. No clipping, no logarithm of a rounded probability.
        """
        theta = self.theta
        logit_v = noise.logistic(tf.shape(b), self.dtype, self._seed(seed))
        positive = tf.math.softplus(logit_v + tf.math.softplus(theta))
        negative = -tf.math.softplus(logit_v + tf.math.softplus(-theta))
        return tf.where(self.indicator(b) > 0.5, positive, negative)

    def trapezoid_vjp(self, b: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
        """`(1/2) |b - p| w`, with `w = df/db` in units of cost per step of the indicator.

        The gradient of one unit is `v (f(1) - f(0))`, with `v = p (1 - p)`, and the trapezoid rule
        for the difference is `(w(1) + w(0)) / 2`. As `p (1 - p) = (1 - p) p`, this is its mean:
        `b = 1` comes with probability p and is given `(1 - p) / 2`, `b = 0` the other way round.
        """
        lo, hi = self.support
        return (0.5 * (hi - lo)) * tf.abs(self.score(b)) * w

    def curved_vjp(self, b: tf.Tensor, w: tf.Tensor, curvature: tf.Tensor) -> tf.Tensor:
        """`v {w - (b - 1/2) k}`, `v = p (1 - p)`, with `w` as in `trapezoid_vjp`.

        The gradient too, if `w(1) - w(0)` is the curvature k: and then the same for both values.
        """
        lo, hi = self.support
        v = tf.sigmoid(self.theta) * tf.sigmoid(-self.theta)
        return v * ((hi - lo) * w - (self.indicator(b) - 0.5) * curvature)

    def curved_noise(self, size: tf.Tensor) -> tf.Tensor:
        """`v^2 + (p - 1/2)^2 v / q`: see `Flip.share`; with q proportional to `v` times `size`."""
        p, v = tf.sigmoid(self.theta), tf.sigmoid(self.theta) * tf.sigmoid(-self.theta)
        return v**2 + (p - 0.5) ** 2 * over_event(sum_event(v * size), v) / (0.9 * size)

    def neighbour(
        self, b: tf.Tensor, seed: Any = None, size: tf.Tensor | float = 1.0
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """`b` with one coordinate j flipped, and `v_j / q_j`, `[batch]`, where `v = p (1 - p)`.

        j is independent of `b`. Its probability `q_j` is mostly proportional to `v_j` times `size`,
        that of what there is to correct: a unit that is decided has nothing.
        """
        v = flat_event(tf.sigmoid(self.theta) * tf.sigmoid(-self.theta))
        q = noise.mostly_proportional(v * flat_event(size * tf.ones_like(self.theta)))
        chosen = noise.one_of(q, *noise.substreams(self._seed(seed), 1))
        weight = tf.reduce_sum(chosen * tf.math.divide_no_nan(v, q), -1)
        other = self._label(tf.cast(self.indicator(b) < 0.5, self.dtype))
        flipped = (tf.reshape(chosen, tf.shape(b)) > 0.5) & ~self._fixed  # a sure value stays
        return tf.where(flipped, other, b), weight

    # Information, in nats, summed over the event.

    def log_prob(self, b: tf.Tensor) -> tf.Tensor:
        """`log p(b|theta)`, shape `[..., batch]`; linear between the two values of the support."""
        indicator = self.indicator(b)
        log_prob = tfp_distributions().Bernoulli(logits=self.theta).log_prob(indicator)
        another = tf.abs(indicator - self._fixed_value()) > 1e-3  # beyond rounding
        at_fixed = -infinite_where(self._fixed & another, self.dtype)
        log_prob = tf.where(self._fixed, at_fixed, log_prob)
        return sum_event(log_prob, 1 + log_prob.shape.rank - self.theta.shape.rank)

    def entropy(self) -> tf.Tensor:
        """`-E log p(b|theta)`, shape `[batch]`."""
        unsure = tf.where(self._fixed, tf.zeros_like(self.theta), self.theta)
        entropy = tfp_distributions().Bernoulli(logits=unsure).entropy()
        return sum_event(tf.where(self._fixed, tf.zeros_like(entropy), entropy))

    def kl_divergence(self, other: "Bernoulli") -> tf.Tensor:
        """`KL(self || other)`, shape `[batch]`: infinite if only `other` is sure of a value."""
        self.check_same_family(other)
        tfd = tfp_distributions()
        p, q = tfd.Bernoulli(logits=self.theta), tfd.Bernoulli(logits=other.theta)
        prob_of_another = tf.sigmoid(-tf.sign(other.theta) * self.theta)
        at_fixed = infinite_where(other._fixed & (prob_of_another > 0), self.dtype)
        return sum_event(tf.where(other._fixed, at_fixed, tfd.kl_divergence(p, q)))


def check_support(support: Any) -> tuple[float, float]:
    """The support as a pair of floats, or a ValueError."""
    try:
        lo, hi = (float(value) for value in support)
        valid = np.isfinite([lo, hi]).all() and lo < hi
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            "`support` must be a pair of finite numbers (low, high) with low < high, such as "
            f"(0, 1) or (-1, 1). Received: {support!r}"
        )
    return lo, hi
