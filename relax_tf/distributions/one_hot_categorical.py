"""Categorical variables by the Gumbel-max trick: `b = onehot(argmax z)`, `z = theta + Gumbel`."""

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
    stand_in_logit,
    sum_event,
)
from relax_tf.validation import positive_if_number


class OneHotCategorical(Distribution):
    """Independent categorical variables with logits `theta`, as one-hot vectors.

    Args:
        logits: `theta`, unnormalised log-probabilities, shape `[batch, *event, classes]`, any
            floating dtype; computations are in float32 at least. Samples have the same shape:
            the class axis is part of the event. A logit of `-inf` (or below -5e4) makes a class
            impossible, as action masks do: no sample falls on it, relaxed ones are 0 there, and
            so is the gradient. `theta` has a finite number in its place.

    Raises:
        TypeError: if `logits` are not floating point.
        ValueError: if `logits` lack a batch or a class axis, or if all classes of a variable are
            impossible where the values are known (not in a graph).

    Example:

    >>> dist = relax_tf.distributions.OneHotCategorical(tf.zeros([2, 3, 5]))
    >>> b, z = dist.draw(seed=0)
    >>> bool(tf.reduce_all(tf.argmax(b, -1) == tf.argmax(z, -1)))
    True
    """

    discrete = True

    def __init__(self, logits: Any):
        super().__init__(at_least_float32(logits, "logits"))
        if self.shape.rank < 2:
            raise ValueError(
                "`logits` need shape [batch, *event, classes] with a batch and a class axis: for "
                "a single variable add a batch axis, logits[tf.newaxis]. Received shape: "
                f"{tuple(self.shape)}"
            )
        self._possible = ~(self.theta < -INFINITE_LOGIT)  # NaN stays NaN
        known = tf.get_static_value(self._possible)
        if known is not None and not np.all(np.any(known, -1)):
            raise ValueError(
                "`logits` must leave some class of each variable possible. Received logits that "
                f"are all -inf for {np.sum(~np.any(known, -1))} of {known[..., 0].size} variables."
            )
        self.theta = self._finite(self.theta)

    def _finite(self, theta: tf.Tensor) -> tf.Tensor:
        """`theta` with finite logits for the impossible classes, which receive no gradient."""
        highest = tf.stop_gradient(tf.reduce_max(theta, -1, keepdims=True))
        return tf.where(self._possible, theta, highest - stand_in_logit(theta.dtype))

    def zero_where_fixed(self, values):
        return tf.where(self._possible, values, tf.zeros([], values.dtype))

    @property
    def logits(self) -> tf.Tensor:
        return self.theta

    def with_theta(self, theta: tf.Tensor) -> "OneHotCategorical":
        return OneHotCategorical(theta)

    # Samples.

    def noise(self, seed: Any = None, sample_shape: tuple[int, ...] = ()) -> tf.Tensor:
        return noise.gumbel(self._noise_shape(sample_shape), self.dtype, self._seed(seed))

    def from_noise(self, eps: tf.Tensor) -> Draw:
        z = self.theta + eps
        return Draw(self.harden(z), z)

    def harden(self, z: tf.Tensor) -> tf.Tensor:
        """`H(z) = onehot(argmax z)`."""
        return tf.one_hot(tf.argmax(z, -1), z.shape[-1] or tf.shape(z)[-1], dtype=self.dtype)

    def relax(self, z: tf.Tensor, temperature: float | tf.Tensor) -> tf.Tensor:
        """The Concrete relaxation of `H` (eq. 4), `softmax(z / temperature)`."""
        scaled = z / positive_if_number(temperature, "temperature")
        return tf.nn.softmax(tf.where(self._possible, scaled, scaled.dtype.min))

    def mean(self) -> tf.Tensor:
        """`E[b] = softmax(theta)`, shape `[batch, *event, classes]`."""
        return self.probabilities()

    def mode(self) -> tf.Tensor:
        """The most probable sample, `[batch, *event, classes]`; of equal ones the first class."""
        return self.harden(self.theta)

    def enumerate(self) -> tf.Tensor:
        """All samples of one event, shape `[classes ** n, *event, classes]` for n variables."""
        return self._all_states(np.eye(self.shape[-1] or 0), self.shape[1:-1])

    def probabilities(self) -> tf.Tensor:
        """The mean of the indicators, `softmax(theta)`: shape of theta."""
        return tf.nn.softmax(self.theta)

    # Derivatives with respect to theta.

    def score(self, b: tf.Tensor) -> tf.Tensor:
        """`d log p(b|theta) / d theta = b - softmax(theta)`, shape of `b`."""
        return b - tf.nn.softmax(self.theta)

    def reparameterization_vjp(self, z: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
        """`(dz / d theta)^T w`: `z = theta + Gumbel` makes it `w`."""
        del z
        return self.zero_where_fixed(w)

    def conditional_vjp(self, b: tf.Tensor, z_tilde: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
        """`(dz_tilde / d theta)^T w` where `z_tilde ~ p(z|b)` keeps its own noise fixed.

        With `e_i = exp(z_tilde_i - z_tilde_b)` and `p = softmax(theta)`, the map of
        `conditional_draw` has `dz_tilde_i = e_i (p . dtheta) + (1 - e_i) dtheta_i`, so this is
        `w_i (1 - e_i) + (sum_j w_j e_j) p_i`. The winner moves with `logsumexp(theta)`, a loser
        close to it is dragged along, and one far below moves with its own logit.
        """
        below = z_tilde - tf.reduce_sum(b * z_tilde, -1, keepdims=True)
        dragged = tf.reduce_sum(w * tf.exp(below), -1, keepdims=True)
        free = self.zero_where_fixed(-tf.math.expm1(below) * w)
        return free + dragged * tf.nn.softmax(self.theta)

    def conditional_draw(self, b: tf.Tensor, seed: Any = None) -> tf.Tensor:
        """Draws `z_tilde ~ p(z|b)` with noise of its own, shape of `b`.

        The winner is `Gumbel(logsumexp(theta))` whichever class it is; the losers are
        `Gumbel(theta_i)` truncated below the winner,
        `-log(exp(-z_b) + exp(-(theta_i + g_i))) = z_b - softplus(z_b - theta_i - g_i)`
        with Gumbel noise `g_i`: finite for all logits, and no exponential is ever rounded to 0
        or infinity before its logarithm is taken (Maddison et al. 2014; Tucker et al. 2017).
        """
        g = noise.gumbel(tf.shape(b), self.dtype, self._seed(seed))
        winner = tf.reduce_logsumexp(self.theta, -1, keepdims=True)
        winner += tf.reduce_sum(b * g, -1, keepdims=True)
        losers = winner - tf.math.softplus(winner - self.theta - g)
        return tf.where(b > 0.5, winner, losers)

    def trapezoid_vjp(self, b: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
        """`(1/2) {(b - p) ((b - p) . w) + (diag(p) - p p^T) w}` of each variable, `w = df/db`.

        The gradient of one variable is `(1/2) sum_{c,l} p_c p_l (f_c - f_l) (e_c - e_l)`. With the
        trapezoid rule `(w(c) + w(l)) . (e_c - e_l) / 2` for the difference, the terms of `w(c)`
        and those of `w(l)` are alike, and what is left is the mean over `b = e_c` of
        `(1/2) sum_l p_l ((b - e_l) . w) (b - e_l)`: the formula above (Liu et al. 2023).
        """
        centred = self.score(b)
        return 0.5 * (centred * self.per_variable(centred * w) + self._covariance_vjp(w))

    def curved_vjp(self, b: tf.Tensor, w: tf.Tensor, curvature: tf.Tensor) -> tf.Tensor:
        """`(diag(p) - p p^T) D` of each variable, with `D_c = w . (e_c - b) + (1/2) k_c`.

        The gradient too, if D is what the cost gains by class c in the place of b: and then the
        same for all b. `k_c` is the curvature between the two, the sum of their `curvature`, and 0
        for `e_c = b`.
        """
        between = (1 - b) * (curvature + self.per_variable(b * curvature))
        return self._covariance_vjp(w - self.per_variable(b * w) + 0.5 * between)

    def _covariance_vjp(self, w: tf.Tensor) -> tf.Tensor:
        """`(diag(p) - p p^T) w` of each variable."""
        p = self.probabilities()
        return p * (w - self.per_variable(p * w))

    def curved_noise(self, size: tf.Tensor) -> tf.Tensor:
        """What `Bernoulli.curved_noise` is, for each variable, `[batch, *variables, 1]`.

        `(2 / V) {(1/4) sum_c (1 - p_c) p_c^2 (1 - 2 p_c + S) + (1/4) M V / q}` with
        `S = sum_c p_c^2`, `V = 1 - S`, and `M = sum_c p_c (1 - p_c) (1/2 + S - 2 p_c)`, the sum
        over pairs c, l of classes of `p_c p_l |(e_c + e_l) / 2 - p|^2`.
        """
        p = self.probabilities()
        v, s = self.per_variable(p * (1 - p)), self.per_variable(p**2)
        of_midpoints = tf.maximum(self.per_variable(p * (1 - p) * (0.5 + s - 2 * p)), 0)
        of_first = self.per_variable((1 - p) * p**2 * (1 - 2 * p + s))
        q = tf.reshape(self._chances(size), tf.shape(v))
        return 0.5 * (tf.math.divide_no_nan(of_first, v) + of_midpoints / q)

    def _chances(self, size: tf.Tensor | float) -> tf.Tensor:
        """The probability of each variable to be the neighbour's, `[batch, n]`."""
        p = self.probabilities()
        return noise.mostly_proportional(flat_event(self.per_variable(p * (1 - p)) * size))

    def per_variable(self, values):
        return tf.reduce_sum(values, -1, keepdims=True)

    def neighbour(
        self, b: tf.Tensor, seed: Any = None, size: tf.Tensor | float = 1.0
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """`b` with one variable j in another class, and a weight, `[batch]`.

        j is independent of `b`, of probability `q_j` mostly proportional to `1 - sum_c p_c^2`
        times `size`, `[1, *variables, 1]`, that of what there is to correct.
        The class changes from c to l with probability `p_l / (1 - p_c)`. The weight,
        `(1 - p_c) (1 - p_l) / ((2 - p_c - p_l) q_j)`, is `p_c p_l / q_j` over the probability
        `p_c p_l / (1 - p_c) + p_l p_c / (1 - p_l)` of the two classes in either order.
        """
        seed_of_variable, seed_of_class = noise.substreams(self._seed(seed), 2)
        theta, b = flat_event(self.theta, axes=1), flat_event(b, axes=1)
        p = tf.nn.softmax(theta)
        q = self._chances(size)
        chosen = noise.one_of(q, seed_of_variable)

        def of_chosen(values):
            return tf.reduce_sum(tf.where(chosen[..., tf.newaxis] > 0.5, values, 0.0), 1)

        old = of_chosen(b)
        z = of_chosen(theta) + noise.gumbel(tf.shape(old), self.dtype, seed_of_class)
        new = self.harden(tf.where(old > 0.5, self.dtype.min, z))
        p_chosen = of_chosen(p)
        not_old, not_new = (tf.reduce_sum((1 - e) * p_chosen, -1) for e in (old, new))
        q_chosen = tf.reduce_sum(chosen * q, -1)
        weight = tf.math.divide_no_nan(not_old * not_new, (not_old + not_new) * q_chosen)
        possible = tf.cast(weight > 0, self.dtype)[:, tf.newaxis, tf.newaxis]
        changed = b + possible * chosen[..., tf.newaxis] * (new - old)[:, tf.newaxis]
        return tf.reshape(changed, tf.shape(self.theta)), weight

    # Information, in nats, summed over the event.

    def log_prob(self, b: tf.Tensor) -> tf.Tensor:
        """`log p(b|theta)`, shape `[..., batch]`; linear between the one-hot vectors."""
        b = tf.cast(b, self.dtype)
        at_impossible = -infinite_where(~self._possible & (b > 0), self.dtype)
        log_prob = tf.where(self._possible, b * tf.nn.log_softmax(self.theta), at_impossible)
        return sum_event(log_prob, 1 + log_prob.shape.rank - self.shape.rank)

    def entropy(self) -> tf.Tensor:
        """`-E log p(b|theta)`, shape `[batch]`."""
        log_p = tf.where(self._possible, tf.nn.log_softmax(self.theta), 0)
        return -sum_event(tf.where(self._possible, tf.nn.softmax(self.theta) * log_p, 0))

    def kl_divergence(self, other: "OneHotCategorical") -> tf.Tensor:
        """`KL(self || other)`, `[batch]`: infinite if a class is impossible in `other` only."""
        self.check_same_family(other)
        log_p, log_q = tf.nn.log_softmax(self.theta), tf.nn.log_softmax(other.theta)
        p = tf.exp(log_p)
        at_impossible = infinite_where(~other._possible & (p > 0), self.dtype)
        return sum_event(tf.where(other._possible, p * (log_p - log_q), at_impossible))
