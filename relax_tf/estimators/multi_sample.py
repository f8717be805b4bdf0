"""Estimators that let K samples of each example serve as each other's baseline.

| estimator | objective                               | credit of sample k                        |
|-----------|-----------------------------------------|-------------------------------------------|
| `rloo`    | `E[f(b)]`                               | `f_k` less the mean of the others         |
| `vimco`   | `-E[log (1/K) sum_k w_k]`, `f = -log w` | the bound less the bound without sample k |

All samples are evaluated in one call of the cost, with K as the leading axis.
"""

import math
from typing import Any

import keras
import tensorflow as tf

from relax_tf.distributions.base import Distribution, Draw
from relax_tf.distributions.noise import fold_in, make_seed
from relax_tf.estimators.arguments import checked_draw
from relax_tf.estimators.base import Estimator
from relax_tf.estimators.estimate import one_at_a_time
from relax_tf.estimators.score_function import score_function_gradient
from relax_tf.validation import boolean, positive_integer


def rloo_gradient(dist: Distribution, b: tf.Tensor, f_b: tf.Tensor) -> Any:
    """Leave-one-out REINFORCE (Kool, van Hoof & Welling 2019), per example:

        (1/K) sum_k (f_k - mean_{j != k} f_j) d log p(b_k|theta)/d theta

    Unbiased: the other samples know nothing of `b_k`.

    Args:
        dist: the distribution, theta of shape `[batch, *event]`.
        b: independent samples `[K, batch, *event]`, K at least 2.
        f_b: `[K, batch]`.

    Returns:
        The shape (structure) of theta.

    Raises:
        ValueError: if K is below 2.
    """
    k = _count(f_b, "f_b")
    credit = (f_b - tf.reduce_mean(f_b, 0)) * (k / (k - 1))
    terms = score_function_gradient(dist, b, credit)
    return tf.nest.map_structure(lambda term: tf.reduce_mean(term, 0), terms)


def multi_sample_bound(log_w: tf.Tensor) -> tf.Tensor:
    """`log (1/K) sum_k w_k` from `log_w`, shape `[K, ...]`, over the first axis."""
    return tf.reduce_logsumexp(log_w, 0) - math.log(log_w.shape[0])


def vimco_credits(log_w: tf.Tensor) -> tf.Tensor:
    """The learning signals of VIMCO (Mnih & Rezende 2016), shape `[K, ...]`:

        L(w_1, ..., w_K) - L(w_1, ..., w_{k-1}, m_k, w_{k+1}, ..., w_K)

    where `L` is the bound and `m_k` the geometric mean of the other weights. The second term is
    the baseline of sample k, since it knows nothing of it.

    Args:
        log_w: log weights, `[K, ...]`, K at least 2.

    Raises:
        ValueError: if K is below 2.
    """
    k = _count(log_w, "log_w")
    itself = tf.reshape(tf.eye(k, dtype=tf.bool), [k, k, *[1] * (log_w.shape.rank - 1)])
    log_w_j = log_w[:, tf.newaxis]  # axis 0: the samples; axis 1: which of them is left out
    others = tf.where(itself, tf.zeros([], log_w.dtype), log_w_j)
    mean_of_others = tf.reduce_sum(others, 0) / (k - 1)
    without = tf.where(itself, mean_of_others, log_w_j)
    return multi_sample_bound(log_w) - multi_sample_bound(without)


def _count(values: tf.Tensor, name: str) -> int:
    """K of `[K, ...]`."""
    if values.shape.rank == 0 or (values.shape[0] or 0) < 2:
        raise ValueError(
            f"`{name}` must have a first axis of at least 2 samples, which are compared with each "
            f"other. Received shape: {tuple(values.shape)}"
        )
    return values.shape[0]


class MultiSampleEstimator(Estimator):
    """Base of the estimators with `num_samples` independent samples of each example.

    With `fold=True` they call the cost once for each sample, with `[batch, *event]`, in place of
    once with `[num_samples, batch, *event]`: for costs that take a batch of one sample each, such
    as a Keras model. In a RelaxModel it makes no difference.
    """

    def __init__(self, num_samples: int, fold: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.fold = boolean(fold, "fold")
        self.num_samples = positive_integer(num_samples, "num_samples")
        if self.num_samples < 2:
            raise ValueError(
                f"`num_samples` must be at least 2: {self.id!r} compares samples with "
                f"each other. Received: {num_samples!r}"
            )

    @property
    def evaluations(self) -> int:
        return self.num_samples

    def combine(self, f_b):
        return tf.reduce_mean(f_b, 0)

    def _estimate(self, dist, draw, cost, context, seed):
        cost = one_at_a_time(cost, dist.shape.rank) if self.fold else cost
        return super()._estimate(dist, draw, cost, context, seed)

    def draw(self, dist, seed=None):
        seed = make_seed(seed)
        return self.complete_draw(dist, dist.noise(seed), fold_in(seed, 2))

    def complete_draw(self, dist: Distribution, eps: tf.Tensor, seed: tf.Tensor) -> Draw:
        """The draws `[K, batch, *event]` of which the first has the noise `eps`."""
        others = dist.noise(seed, (self.num_samples - 1,))
        return dist.from_noise(tf.concat([eps[tf.newaxis], others], 0))

    def _checked_draw(self, dist, draw, seed):
        del seed
        shape = tf.TensorShape([self.num_samples]).concatenate(dist.shape)
        return checked_draw(dist, draw, shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_samples": self.num_samples, "fold": self.fold}


@keras.saving.register_keras_serializable("relax_tf")
class Rloo(MultiSampleEstimator):
    """REINFORCE with K samples and a leave-one-out baseline (Kool, van Hoof & Welling 2019).

    Unbiased, K evaluations of the cost (in one call), asks nothing of it. In a model the hard
    pass has the first sample, a replay the others; parameters that the samples feed learn from
    the first.

    Args:
        num_samples: K, at least 2.
        fold: whether to call the cost once for each sample, with `[batch, *event]`.

    Example:

    >>> estimator = relax_tf.estimators.Rloo(num_samples=8)
    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([5, 3]))
    >>> estimate = estimator.estimate(dist, lambda b: tf.reduce_sum(b, -1), seed=0)
    >>> estimate.sample.shape, estimate.cost.shape, estimate.gradient.shape
    (TensorShape([8, 5, 3]), TensorShape([5]), TensorShape([5, 3]))
    """

    def __init__(self, num_samples: int = 4, **kwargs):
        super().__init__(num_samples, **kwargs)

    def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
        return rloo_gradient(dist, draw.b, f_b), None


@keras.saving.register_keras_serializable("relax_tf")
class Vimco(MultiSampleEstimator):
    """VIMCO, for the K-sample bound `log (1/K) sum_k w_k` (Mnih & Rezende 2016).

    The cost of a sample is `-log w` in nats, `log q(b|x) - log p(x, b)` for a variational
    autoencoder; what is minimised, and reported as the cost, is minus the bound. Unbiased for the
    bound, K evaluations of the cost (in one call), asks nothing of it. `Estimate.gradient` is the
    score-function part; the surrogate adds the gradient through the weights, which the bound
    normalises. In a model all stochastic layers must use `vimco` with equal K and share K joint
    particles, and their KL must be `kl="sampled"`: a bound has no closed-form KL. Evaluation has
    the cost of single samples: `val_loss` is minus the ELBO, `loss` minus the bound.

    Args:
        num_samples: K, at least 2.
        fold: whether to call the cost once for each sample, with `[batch, *event]`.

    Example:

    >>> estimator = relax_tf.estimators.Vimco(num_samples=5)
    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([1, 3]))
    >>> cost = lambda b: tf.reduce_sum(b, -1)
    >>> estimate = estimator.estimate(dist, cost, seed=0)
    >>> bool(estimate.cost[0] < tf.reduce_mean(cost(estimate.sample)))  # tighter than the ELBO
    True
    """

    joint = True

    def __init__(self, num_samples: int = 5, **kwargs):
        super().__init__(num_samples, **kwargs)

    def combine(self, f_b):
        return -multi_sample_bound(-f_b)

    def credits(self, f_b: tf.Tensor) -> tf.Tensor:
        """What each sample adds to minus the bound, `[K, batch]`, from its cost `-log w`."""
        return -vimco_credits(-f_b)

    def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
        terms = score_function_gradient(dist, draw.b, self.credits(f_b))
        return tf.nest.map_structure(lambda term: tf.reduce_sum(term, 0), terms), None
