"""ARMS: K antithetic samples that serve as each other's baseline (Dimitriev & Zhou 2021).

K uniform numbers that repel each other are made from exponential ones, `e_k ~ Exp(1)`:

    c_k = (1 - e_k / sum_j e_j)^(K-1)

Each is uniform; two of them are both below p with probability `B(p)`, less than `p^2`:

    B(p) = max(0, 2 p^(1/(K-1)) - 1)^(K-1)

A leave-one-out estimate of samples that depend on each other needs a factor, the variance over the
mean product of what they vary by. At K = 2 all this is DisARM.
"""

from typing import Any

import keras
import tensorflow as tf

from relax_tf.distributions import Bernoulli, OneHotCategorical, noise
from relax_tf.distributions.base import Draw, over_event
from relax_tf.estimators.multi_sample import MultiSampleEstimator, _count


def joint_over_single(log_p: tf.Tensor, k: int) -> tf.Tensor:
    """`B(p) / p = max(0, 2 - p^(-1/(K-1)))^(K-1)`, from `log p`; 0 at p = 0."""
    return tf.maximum(2.0 - tf.exp(-log_p / (k - 1)), 0.0) ** (k - 1)


def arms_gradient(dist: Bernoulli, b: tf.Tensor, f_b: tf.Tensor) -> tf.Tensor:
    """ARMS for Bernoulli variables, per example:

        1/(K-1) sum_k (f_k - mean f) (b_k - p) v / (p - J),    v = p (1 - p)

    where `J` is the probability that two given samples are both 1. With `r = min(p, 1 - p)` the
    factor is `(1 - r) / (1 - B(r) / r)`; at K = 2 `sigmoid(|theta|)`.

    Args:
        dist: the distribution, theta of shape `[batch, *event]`.
        b: the samples of one `Arms.draw`, `[K, batch, *event]`.
        f_b: their costs, `[K, batch]`.

    Returns:
        The shape of theta. Unbiased.

    Raises:
        ValueError: if K is below 2.
    """
    k = _count(f_b, "f_b")
    size = tf.abs(dist.theta)
    factor = tf.sigmoid(size) / (1 - joint_over_single(tf.math.log_sigmoid(-size), k)) / (k - 1)
    score = dist.score(b)
    return factor * tf.reduce_sum(over_event(f_b - tf.reduce_mean(f_b, 0), score) * score, 0)


def categorical_arms_gradient(dist: OneHotCategorical, b: tf.Tensor, f_b: tf.Tensor) -> tf.Tensor:
    """ARMS for one-hot variables, by stick-breaking, per example:

        1/(K (K-1)) sum_{m < n} w(min(z_m, z_n)) (f_m - f_n) (b_m - b_n)

    `z` is the place of the sample's class among the classes in ascending order of probability,
    `w(z)` the probability of two independent samples' stopping there, one of them at least, over
    that of two ARMS samples, with `phi_i` the probability of class i once the classes before it
    are excluded:

        w(z) = prod_{i < z} (1 - phi_i)^2 / (1 - 2 phi_i + B(phi_i)) * (1 - phi_z) / (1 - B/phi_z)

    Args:
        dist: the distribution, theta of shape `[batch, *event, classes]`.
        b: the samples of one `Arms.draw`, `[K, batch, *event, classes]`.
        f_b: their costs, `[K, batch]`.

    Returns:
        The shape of theta. Unbiased.

    Raises:
        ValueError: if K is below 2.
    """
    k = _count(f_b, "f_b")
    order, phi = sticks(dist.theta)
    joint = joint_over_single(tf.math.log(phi), k)
    # The last class comes after all others: two samples that differ do not both stop there.
    phi, joint = phi[..., :-1], joint[..., :-1]
    passed = tf.math.divide_no_nan((1 - phi) ** 2, 1 - 2 * phi + phi * joint)
    stopped = (1 - phi) / (1 - joint)
    w = tf.math.cumprod(passed, -1, exclusive=True) * stopped
    w = tf.concat([w, tf.zeros_like(order[..., :1], w.dtype)], -1)

    place = tf.argsort(order)
    w = tf.gather(w, place, batch_dims=w.shape.rank - 1)
    z = tf.reduce_sum(b * tf.cast(place, b.dtype), -1)  # [K, batch, *event]
    w = tf.reduce_sum(b * w, -1)
    first = tf.where(z[:, tf.newaxis] < z, w[:, tf.newaxis], w)
    differences = over_event(f_b[:, tf.newaxis] - f_b, first)
    credit = tf.reduce_sum(first * differences, 1) / (k * (k - 1))
    return tf.reduce_sum(credit[..., tf.newaxis] * b, 0)


def sticks(theta: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The classes in ascending order of probability, and `phi` in that order, both like theta.

    `phi_i = p_i / sum_{j >= i} p_j`: at most 1/2, except the last one, which is 1.
    """
    order = tf.argsort(theta, axis=-1)
    p = tf.nn.softmax(tf.gather(theta, order, batch_dims=theta.shape.rank - 1))
    return order, p / tf.cumsum(p, -1, reverse=True)


def others_of_copula(log_c: tf.Tensor, e: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The other numbers of a copula whose first is known.

    Args:
        log_c: `log c_1`, any shape.
        e: exponential numbers, `[K-1, ...]`.

    Returns:
        `log c_k` and `log (1 - c_k)`, `[K-1, ...]`: finite, and accurate at both ends.
    """
    others = e.shape[0]
    root = tf.exp(log_c / others)
    shares = e / tf.reduce_sum(e, 0)
    rest = tf.tensordot(1 - tf.eye(others, dtype=e.dtype), shares, 1)
    share = tf.maximum(root * shares, 1e-30)
    one_less_share = -tf.math.expm1(log_c / others) + root * rest
    log_root = tf.where(share < 0.5, tf.math.log1p(-share), tf.math.log(one_less_share))
    log_c = others * log_root
    return log_c, tf.math.log(-tf.math.expm1(log_c))


class _Repelling(Draw):
    """A draw whose samples repel each other: no other is known to."""


@keras.saving.register_keras_serializable("relax_tf")
class Arms(MultiSampleEstimator):
    """ARMS: K samples of each example that repel each other (Dimitriev & Zhou 2021).

    Unbiased, K evaluations of the cost (in one call), asks nothing of it. `disarm` at K = 2; for
    more samples and for one-hot variables what DisARM is for pairs of binary ones: less variance
    than `rloo`'s independent samples. In a model the hard pass has the first sample, a replay the
    others; parameters that the samples feed learn from the first.

    `estimate` takes a draw of `Arms.draw` as it is. Of any other the first sample counts: the rest,
    which has to repel it, is drawn with `seed`.

    Args:
        num_samples: K, at least 2.

    Example:

    >>> estimator = relax_tf.estimators.Arms(num_samples=4)
    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([5, 3]))
    >>> estimate = estimator.estimate(dist, lambda b: tf.reduce_sum(b, -1), seed=0)
    >>> estimate.sample.shape, estimate.cost.shape, estimate.gradient.shape
    (TensorShape([4, 5, 3]), TensorShape([5]), TensorShape([5, 3]))
    """

    defined_for = ("discrete",)
    families = (Bernoulli, OneHotCategorical)

    def __init__(self, num_samples: int = 4, **kwargs):
        super().__init__(num_samples, **kwargs)

    def complete_draw(self, dist, eps, seed):
        draw = _binary_draw if isinstance(dist, Bernoulli) else _stick_breaking_draw
        return draw(dist, eps, seed, self.num_samples - 1)

    def draw(self, dist, seed=None):
        return _Repelling(*super().draw(dist, seed))

    def _checked_draw(self, dist, draw, seed):
        repelling = isinstance(draw, _Repelling)
        draw = super()._checked_draw(dist, draw, seed)
        if repelling:
            return draw
        return self.complete_draw(dist, draw.z[0] - dist.theta, noise.fold_in(seed, 2))

    def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
        binary = isinstance(dist, Bernoulli)
        gradient = arms_gradient if binary else categorical_arms_gradient
        return gradient(dist, draw.b, f_b), None


def _exponential(shape: Any, dtype: tf.DType, seed: tf.Tensor) -> tf.Tensor:
    return -tf.math.log(noise.uniform(shape, dtype, seed))


def _with_leading(size: int, like: tf.Tensor) -> tf.Tensor:
    return tf.concat([[size], tf.shape(like)], 0)


def _binary_draw(dist: Bernoulli, eps: tf.Tensor, seed: tf.Tensor, others: int) -> Draw:
    """`b = 1[u < p]`, `u = sigmoid(-eps)` the copula's number where p < 1/2, else 1 less it."""
    sign = tf.where(dist.theta < 0, -tf.ones([], eps.dtype), 1.0)  # eps = sign logit(c)
    e = _exponential(_with_leading(others, eps), eps.dtype, *noise.substreams(seed, 1))
    log_c, log_not_c = others_of_copula(tf.math.log_sigmoid(sign * eps), e)
    return dist.from_noise(tf.concat([eps[tf.newaxis], sign * (log_c - log_not_c)], 0))


def _stick_breaking_draw(
    dist: OneHotCategorical, eps: tf.Tensor, seed: tf.Tensor, others: int
) -> Draw:
    """Each class in turn, the least probable first, takes the sample if its number is below phi.

    The first sample is there already: its numbers are drawn given that they lead to it.
    """
    seeds = noise.substreams(seed, 3)
    first = dist.from_noise(eps)
    order, phi = sticks(dist.theta)
    axes = phi.shape.rank - 1
    taken = tf.gather(first.b, order, batch_dims=axes)
    passed = tf.cumsum(taken, -1) < 0.5
    u = noise.uniform(tf.shape(phi), phi.dtype, seeds[0])
    c = tf.where(taken > 0.5, phi * u, tf.where(passed, phi + (1 - phi) * u, u))
    e = _exponential(_with_leading(others, phi), phi.dtype, seeds[1])
    log_c, _ = others_of_copula(tf.math.log(tf.maximum(c, 1e-30)), e)
    takes = tf.concat([log_c[..., :-1] < tf.math.log(phi[..., :-1]), log_c[..., -1:] <= 0], -1)
    place = tf.argmax(tf.cast(takes, tf.int32), -1)  # the first that takes it
    b = tf.cast(place[..., tf.newaxis] == tf.cast(tf.argsort(order), place.dtype), phi.dtype)
    z = dist.conditional_draw(b, seeds[2])
    return Draw(
        *(tf.concat([one[tf.newaxis], more], 0) for one, more in zip(first, (b, z), strict=True))
    )
