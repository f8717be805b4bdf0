"""Normal units."""

from typing import Any

import keras
import tensorflow as tf

from relax_tf.distributions import Normal
from relax_tf.distributions.base import at_least_float32
from relax_tf.estimators import Estimator
from relax_tf.layers.base import StochasticLayer, as_event
from relax_tf.validation import positive_integer

# A floor for the scale. The score recovers `eps = (b - loc) / scale` from `b`, so the scale must
# stay well above the rounding of `loc`.
MINIMUM_SCALE = 1e-3


@keras.saving.register_keras_serializable("relax_tf")
class StochasticNormalLayer(StochasticLayer):
    """Normal units: `loc` and `scale` from `x W + beta`, `b = loc + scale eps`.

    Inputs `[batch, ..., features]`, outputs `[batch, ..., units]` in the layer's compute dtype.
    The first half of `x W + beta`, shape `[batch, ..., 2 units]`, is `loc`; `softplus` of the
    second half, plus 0.001, is `scale`. Trained inside `relax_tf.RelaxModel`; with
    `reparameterization` in any model.

    Args:
        units: the number of normal units.
        estimator: how gradients come back through the sample: an id (`"lax"`,
            `"reparameterization"`, `"reinforce"`), a config or an `Estimator`.
        prior: None; `"standard"`, mean 0 and scale 1; or `"learned"`, independent units with a
            trainable mean and scale that start there. With a prior the layer's KL, in nats,
            joins the cost of each example.
        kl, inference, use_bias, kernel_initializer, bias_initializer, kernel_regularizer,
            bias_regularizer, seed: as in `relax_tf.StochasticBinaryLayer`; kernel and bias are
            those of `x W + beta`.

    Raises:
        ValueError: for an unknown estimator or one for discrete samples, an unknown prior, kl or
            inference, or `units` below 1; when called with `training=True` outside of a
            `RelaxModel` although the estimator needs the cost.

    Example:

    >>> inputs = keras.Input([784])
    >>> z = relax_tf.StochasticNormalLayer(10, "reparameterization", prior="standard")(inputs)
    >>> vae = relax_tf.RelaxModel(inputs, keras.layers.Dense(784)(z))
    >>> vae.compile("adam", loss=relax_tf.losses.BernoulliNegativeLogLikelihood())
    """

    family = Normal
    fixed_prior = "standard"

    def __init__(
        self,
        units: int,
        estimator: str | dict[str, Any] | Estimator = "lax",
        prior: str | None = None,
        kl: str = "analytic",
        inference: str = "sample",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        seed: int | None = None,
        **kwargs,
    ):
        units = positive_integer(units, "units")
        super().__init__(
            2 * units,
            estimator,
            prior,
            kl,
            inference,
            use_bias,
            kernel_initializer,
            bias_initializer,
            kernel_regularizer,
            bias_regularizer,
            seed,
            **kwargs,
        )
        self.units = units

    def build_prior(self):
        self.prior_loc = self.add_prior_weight("prior_loc", (self.units,))
        self.prior_log_scale = self.add_prior_weight("prior_log_scale", (self.units,))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def distribution(self, inputs):
        loc, scale = tf.split(at_least_float32(self.dense(inputs), "theta"), 2, -1)
        return Normal(loc, tf.math.softplus(scale) + MINIMUM_SCALE)

    def prior_distribution(self, event_rank=1):
        loc, log_scale = (as_event(w, event_rank) for w in (self.prior_loc, self.prior_log_scale))
        return Normal(loc, tf.exp(log_scale))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}
