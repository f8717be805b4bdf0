"""NVIL: the score function with a learned, input-dependent baseline (Mnih & Gregor 2014)."""

from typing import Any

import keras
import tensorflow as tf

from relax_tf.estimators.base import Estimator
from relax_tf.estimators.baseline import built_baseline, foretold
from relax_tf.estimators.estimate import batch_mean
from relax_tf.estimators.moving_moments import MovingMoments
from relax_tf.estimators.networks import checked_network, network_config, with_networks
from relax_tf.estimators.score_function import score_function_gradient
from relax_tf.validation import boolean, decay_rate


@keras.saving.register_keras_serializable("relax_tf")
class Nvil(Estimator):
    """NVIL: `(f(b) - B_phi(context) - c) d log p(b|theta) / d theta` (Mnih & Gregor 2014).

    `B_phi` is a network that sees what the sample was drawn from, `c` the average of what it
    missed in past batches. Unbiased, one evaluation of the cost, asks nothing of it. The network
    minimises its squared error, `(f(b) - c - B_phi(context)) ** 2`. Without a context there is no
    network, and centring by `c` remains.

    Args:
        baseline: a Keras layer or model from the flattened context, `[batch, features]`, to
            `[batch, 1]` or `[batch]`. By default `relax_tf.control_variates.MLP()`.
        decay: in [0, 1), of the moving averages: the weight of a batch relative to the next one.
            None: no moving averages, `c = 0`; in reinforcement learning, with the state as the
            context, that is the advantage actor-critic (A2C).
        normalize_variance: divides the gradient by `max(1, s)`, where `s` is the standard
            deviation of the centred costs of past batches (their variance normalisation). It
            rescales the gradient, by a factor that changes slowly: with it the expectation is
            the gradient up to that factor, and layers with different factors mix.

    Raises:
        TypeError: if `baseline` is not a Keras layer or an argument is of the wrong type.
        ValueError: if `decay` is not in [0, 1), if it is None although the variance is to be
            normalised, if the baseline has no output of shape
            `[batch, 1]` or `[batch]`, or if `estimate` gets no context although an earlier call
            had one.

    Example:

    >>> estimator = relax_tf.estimators.Nvil()
    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([4, 3]))
    >>> cost = lambda b: tf.reduce_sum(b, -1)
    >>> estimate = estimator.estimate(dist, cost, context=tf.ones([4, 2]), seed=0)
    >>> float(estimate.control_variate_loss) == float(tf.reduce_mean(estimate.cost**2))  # B = c = 0
    True
    """

    learns_from_gradient = False

    def __init__(
        self,
        baseline: keras.layers.Layer | None = None,
        decay: float | None = 0.8,
        normalize_variance: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self._is_default = baseline is None
        self.baseline = checked_network(baseline, "baseline")
        self.decay = decay if decay is None else decay_rate(decay, "decay")
        self.normalize_variance = boolean(normalize_variance, "normalize_variance")
        if self.normalize_variance and self.decay is None:
            raise ValueError(
                "`normalize_variance` needs the moving averages. Received: decay=None with "
                "normalize_variance=True"
            )
        self.past = None
        if self.decay is not None:
            self.past = MovingMoments(self.decay, dtype=self.dtype_policy, name="past")
        self._sees_context = False

    def build(self, theta_shape, context_shape=None):
        self._sees_context = context_shape is not None
        self.baseline = built_baseline(self.baseline, context_shape, (200, 200), self.dtype_policy)
        super().build(theta_shape, context_shape)

    def baseline_error(self, f_b: tf.Tensor, context: tf.Tensor | None) -> tf.Tensor:
        """`f(b) - B_phi(context)`, shape `[batch]`."""
        return f_b - foretold(self.baseline, context, f_b.dtype) if self._sees_context else f_b

    def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
        signal = self.baseline_error(f_b, context)
        if self.past is not None:
            signal -= tf.cast(self.past.mean(), f_b.dtype)
        credit = tf.stop_gradient(signal)
        if self.normalize_variance:
            credit /= tf.maximum(tf.cast(self.past.standard_deviation(), f_b.dtype), 1.0)
        gradient = score_function_gradient(dist, draw.b, credit)
        return gradient, batch_mean(tf.square(signal))

    def observe(self, f_b, context):
        if self.past is not None:
            self.past.update(self.baseline_error(f_b, context))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "baseline": network_config(self.baseline, self._is_default),
            "decay": self.decay,
            "normalize_variance": self.normalize_variance,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**with_networks(config, "baseline"))
