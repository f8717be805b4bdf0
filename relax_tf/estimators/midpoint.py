"""Pairs of samples with slopes at their midpoint as control variate.

Given the midpoint `m = (b_1 + b_2) / 2` of an exchangeable pair, a fair coin for each variable says
which of the two samples had which value. So what depends on `m` alone foretells the difference of
the two costs without knowing the coin that decides the estimate's sign.

| estimator        | slopes at the midpoint                       |
|------------------|----------------------------------------------|
| `midpoint`       | the cost's own derivative                    |
| `relaxed_disarm` | learned, so the cost may be a black box      |
"""

from typing import Any

import keras
import tensorflow as tf

from relax_tf.control_variates import (
    MLP,
    QuadraticSlopes,
    build_network,
    by_backpropagation,
    evaluate_outputs,
)
from relax_tf.distributions import Bernoulli, OneHotCategorical
from relax_tf.distributions.base import Distribution, over_event, sum_event
from relax_tf.estimators.antithetic import AntitheticEstimator, _check_pair
from relax_tf.estimators.arguments import check_event
from relax_tf.estimators.estimate import evaluate_cost
from relax_tf.estimators.flip import finite_slopes
from relax_tf.estimators.moving_moments import MovingMoments
from relax_tf.estimators.multi_sample import MultiSampleEstimator
from relax_tf.estimators.networks import checked_network, network_config, with_networks
from relax_tf.validation import decay_rate

_MOST_UNITS = 1_000  # of whose pairs each has a weight


def midpoint_gradient(
    dist: Distribution, b: tf.Tensor, f_b: tf.Tensor, slopes: tf.Tensor
) -> tf.Tensor:
    """The pair's estimate with slopes `a` as control variate, per example and variable i:

        w_i {(f(b_1) - f(b_2) - a . d) d_i + (a_i . d_i) d_i},    d = b_1 - b_2

    with `w_i = sigmoid(|theta_i|) / 2` for an antithetic pair of Bernoulli variables (DisARM is
    this with `a = 0`), `w_i = 1/2` for two independent one-hot samples (`rloo` at K = 2).

    Unbiased for every `a` that depends on the samples through `(b_1 + b_2) / 2` only: given that,
    the signs of the `d_i` are fair and independent of each other, so
    `(a . d) d_i` has the mean `(a_i . d_i) d_i`, in which the sign cancels.

    Args:
        dist: the distribution, theta of shape `[batch, *event]`.
        b: both samples, `[2, batch, *event]`.
        f_b: their costs, `[2, batch]`.
        slopes: `a`, in units of cost per unit of the sample, `[batch, *event]`.

    Returns:
        The shape of theta. Unbiased.

    Raises:
        ValueError: if there are not two samples and two costs.
    """
    _check_pair(b, "b")
    _check_pair(f_b, "f_b")
    d = dist.score(b[0]) - dist.score(b[1])  # of the indicators
    own = slopes * (b[0] - b[1])
    remainder = over_event(f_b[0] - f_b[1] - sum_event(own), d)
    if isinstance(dist, Bernoulli):
        weight = 0.5 * tf.sigmoid(tf.abs(dist.theta))
    else:
        weight, own = 0.5, tf.reduce_sum(own, -1, keepdims=True)
    return weight * (remainder + own) * d


@keras.saving.register_keras_serializable("relax_tf")
class Midpoint(MultiSampleEstimator):
    """A pair of samples, and the cost's derivative at their midpoint as control variate.

    Unbiased. Two evaluations of the cost at hard samples (in one call) and one at their midpoint,
    where it must have a derivative; any derivative: a wrong one costs variance and never bias. The
    pair is antithetic for Bernoulli variables and independent for one-hot ones. No temperature.
    How far the slopes are to be trusted is learned, a factor for each number of the sample that
    starts at 1 and minimises the second moment of the gradient, as phi does in RELAX (eq. 16); at
    0 for all the estimate is `disarm`'s, for one-hot variables `rloo`'s of two samples. The
    variance vanishes as units become decided: then few coordinates differ in a pair.

    In a model the hard pass has the first sample, replays the second and the midpoint; layers
    downstream keep their noise and emit hard samples, and slopes lead through continuous ones of
    these only; parameters that the samples feed learn from the first.

    Raises:
        ValueError: from `estimate`, if the cost has no gradient at all.

    Example: of a quadratic cost the slope at the midpoint foretells the difference exactly.

    >>> estimator = relax_tf.estimators.get("midpoint")
    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([1, 2]))
    >>> estimator.estimate(dist, lambda b: tf.reduce_sum(b, -1) ** 2, seed=0).gradient.numpy()
    array([[0.5, 0.5]], dtype=float32)
    """

    defined_for = ("discrete",)
    families = (Bernoulli, OneHotCategorical)
    replay = "sloped"

    def __init__(self, **kwargs):
        super().__init__(num_samples=2, **kwargs)

    @property
    def evaluations(self) -> int:
        return 3

    def build(self, theta_shape, context_shape=None):
        self._event = theta_shape[1:]
        event = [size or 1 for size in self._event]  # shared along axes of unknown size
        self.scale = self.add_weight(name="scale", shape=event, initializer="ones")
        super().build(theta_shape, context_shape)

    def complete_draw(self, dist, eps, seed):
        if isinstance(dist, Bernoulli):
            return dist.from_noise(tf.stack([eps, -eps]))
        return super().complete_draw(dist, eps, seed)

    def _checked_draw(self, dist, draw, seed):
        draw = super()._checked_draw(dist, draw, seed)
        if isinstance(dist, Bernoulli):
            return self.complete_draw(dist, draw.z[0] - dist.theta, None)
        return draw

    def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
        check_event(dist, self._event, self.id)
        midpoint = tf.reduce_mean(draw.b, 0)
        _, slopes = by_backpropagation(lambda b: evaluate_cost(cost, b, dist), midpoint)
        if slopes is None:
            raise ValueError(
                f"estimator {self.id!r} differentiates the cost at the "
                "midpoint of two samples, but the cost has no gradient with respect to its sample. "
                "For a black-box cost use estimator='relaxed_disarm' (binary variables), 'arms' or "
                "'relax'."
            )
        slopes = tf.cast(self.scale, dist.dtype) * finite_slopes(slopes)
        return midpoint_gradient(dist, draw.b, f_b, slopes), None

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["num_samples"]
        return config


@keras.saving.register_keras_serializable("relax_tf")
class RelaxedDisarm(AntitheticEstimator):
    """DisARM with learned slopes: `disarm`'s pair, and a quadratic form as its control variate.

    Unbiased, two evaluations of the cost (in one call), asks nothing of it: it may be a black box.
    For Bernoulli variables. Slopes `a(m, context)` foretell from the midpoint of the pair what each
    unit does to the cost; they minimise the second moment of the gradient, as `relax` does
    (eq. 16), and start at zero, as `disarm`. See `midpoint_gradient`.

    It learns from one number for each pair: on a frozen linear VAE with 200 units, 10 000 steps of
    learning take away half of `disarm`'s variance after 6 000 steps of training and an eighth after
    30 000, 100 000 steps half; with tanh layers a quarter and a twelfth
    (examples/results/variance.md).

    Args:
        slopes: a Keras layer or model from `[batch, features]` to `[batch, units]`, where the
            features are the midpoint, -1, 0 and 1 for each unit, and the context, flattened, side
            by side (a `relax_tf.control_variates.ControlVariate` has them apart). Its output is in
            units of the standard deviation of past costs over four times the units. By default
            the slopes of a quadratic form, `r(m, context) + H (m - E[b])`: a weight for each pair
            of units and a network of 64. For more than 1 000 units, and on feature maps, a network
            alone, `relax_tf.control_variates.MLP([200], outputs=units)`.
        decay: in [0, 1), of that deviation: the weight of a batch relative to the next one.

    Raises:
        TypeError: if `slopes` is not a Keras layer or `decay` not a number.
        ValueError: from `estimate` and from layers, for any other distribution.

    Example:

    >>> estimator = relax_tf.estimators.get("relaxed_disarm")
    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([4, 3]))
    >>> estimate = estimator.estimate(dist, lambda b: tf.math.argmax(b, -1), seed=0)
    >>> len(estimator.trainable_variables)
    5
    """

    def __init__(self, slopes: keras.layers.Layer | None = None, decay: float = 0.99, **kwargs):
        super().__init__(**kwargs)
        self._is_default = self._learns_pairs = slopes is None
        self.slopes = checked_network(slopes, "slopes")
        self.decay = decay_rate(decay, "decay")
        self.past = MovingMoments(self.decay, dtype=self.dtype_policy, name="past")

    def build(self, theta_shape, context_shape=None):
        if self.slopes is None:
            units = tf.TensorShape(theta_shape[1:]).num_elements()
            is_map = len(theta_shape) > 3
            if self._learns_pairs and units and units <= _MOST_UNITS and not is_map:
                self.slopes = QuadraticSlopes(units, dtype=self.dtype_policy)
            else:  # units of an unknown number are refused below
                self.slopes = MLP([200], outputs=units or 1, dtype=self.dtype_policy)
        deviation_shape = theta_shape if self._sees_deviation else None
        build_network(
            self.slopes, theta=theta_shape, deviation=deviation_shape, context=context_shape
        )
        super().build(theta_shape, context_shape)

    @property
    def _sees_deviation(self) -> bool:
        return isinstance(self.slopes, QuadraticSlopes)

    def unit(self, dist: Bernoulli) -> tf.Tensor:
        """What the network's output is a multiple of, per unit of the sample: a scalar.

        A small one, since what many slopes add up to is noisy while they are being learned.
        """
        deviation = self.past.standard_deviation()
        deviation = tf.cast(tf.where(deviation > 0, deviation, 1), dist.dtype)
        units = tf.cast(tf.reduce_prod(tf.shape(dist.theta)[1:]), dist.dtype)
        lo, hi = dist.support
        return deviation / (4 * units * (hi - lo))

    def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
        midpoint = dist.indicator(tf.reduce_mean(draw.b, 0))
        deviation = 2 * (midpoint - tf.sigmoid(dist.theta)) if self._sees_deviation else None
        outputs = evaluate_outputs(self.slopes, 2 * midpoint - 1, deviation, context)
        slopes = self.unit(dist) * tf.reshape(outputs, tf.shape(midpoint))
        return midpoint_gradient(dist, draw.b, f_b, slopes), None

    def observe(self, f_b, context):
        self.past.update(f_b)

    def get_config(self) -> dict[str, Any]:
        network = network_config(self.slopes, self._is_default)
        own = {"slopes": network, "decay": self.decay, "pairs": self._learns_pairs}
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config):
        # Files of earlier versions, which have a name, say nothing of pairs: theirs is the MLP.
        config = with_networks(config, "slopes")
        pairs = config.pop("pairs", "name" not in config)
        estimator = cls(**config)
        estimator._learns_pairs &= pairs
        return estimator
