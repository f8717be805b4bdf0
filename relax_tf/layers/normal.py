"""Normal units."""

from typing import Any

import keras
import tensorflow as tf

from relax_tf.distributions import Normal
from relax_tf.distributions.base import at_least_float32
from relax_tf.estimators import Estimator
from relax_tf.layers.base import StochasticLayer
from relax_tf.layers.prior import as_event
from relax_tf.validation import positive_integer

# A floor for the scale. The score recovers `eps = (b - loc) / scale` from `b`, so the scale must
# stay well above the rounding of `loc`.
MINIMUM_SCALE = 1e-3


@keras.saving.register_keras_serializable("relax_tf")
class StochasticNormalLayer(StochasticLayer):
    """Normal units: `loc` and `scale` from `x W + beta`, `b = loc + scale eps`.

    Inputs `[batch, ..., features]`, outputs `[batch, ..., units]` in the layer's compute dtype.
    The first half of `x W + beta`, shape `[batch, ..., 2 units]`, is `loc`; `softplus` of the
    second half, plus 0.001, is `scale`. With `units=None` there are no W and beta: the inputs are
    `[loc, scale]`, two tensors `[batch, ..., units]`, the scale positive and well above the
    rounding of `loc` (`softplus(...) + 0.001`, say). Trained inside `relax_tf.RelaxModel`; with
    `reparameterization` in any model.

    Args:
        units: the number of normal units, or None for inputs `[loc, scale]`.
        estimator: how gradients come back through the sample: an id, a config or an `Estimator`.
            All are in `relax_tf.estimators`; first to try are `"reparameterization"` if TensorFlow
            can differentiate the cost, and `"lax"` for a black box.
        prior: None; `"standard"`, mean 0 and scale 1; or `"learned"`, independent units with a
            trainable mean and scale that start there. With a prior the layer's KL, in nats,
            joins the cost of each example.
        kl, inference, use_bias, kernel_initializer, bias_initializer, kernel_regularizer,
            bias_regularizer, seed: as in `relax_tf.StochasticBinaryLayer`; kernel and bias are
            those of `x W + beta`.

    Raises:
        ValueError: for an unknown estimator or one for discrete samples, an unknown prior, kl or
            inference, `units` below 1, or a setting of W and beta with `units=None`; for inputs
            that are no pair of one shape, or a scale that is known not to be positive; when called
            with `training=True` outside of a `RelaxModel` although the estimator needs the cost.

    Example:

    >>> inputs = keras.Input([784])
    >>> z = relax_tf.StochasticNormalLayer(10, "reparameterization", prior="standard")(inputs)
    >>> vae = relax_tf.RelaxModel(inputs, keras.layers.Dense(784)(z))
    >>> vae.compile("adam", loss=relax_tf.losses.BernoulliNegativeLogLikelihood())

    Mean and scale of your own:

    >>> loc, scale = keras.layers.Dense(3)(inputs), keras.layers.Dense(3, "softplus")(inputs)
    >>> relax_tf.StochasticNormalLayer(units=None)([loc, scale]).shape
    (None, 3)
    """

    family = Normal
    fixed_prior = "standard"

    def __init__(
        self,
        units: int | None,
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
        units = None if units is None else positive_integer(units, "units")
        super().__init__(
            None if units is None else 2 * units,
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

    def build_prior(self, units):
        self.prior_loc = self.add_prior_weight("prior_loc", units)
        self.prior_log_scale = self.add_prior_weight("prior_log_scale", units)

    def _sample_shape(self, inputs_shape):
        if self.units is not None:
            return (*inputs_shape[:-1], self.units)
        loc, scale = _pair(inputs_shape, self.name)
        if tuple(loc) != tuple(scale):
            raise ValueError(
                f"layer {self.name!r} takes `[loc, scale]` of one shape. "
                f"Received shapes: {tuple(loc)} and {tuple(scale)}"
            )
        return tuple(loc)

    def distribution(self, inputs):
        if self.units is None:
            return Normal(*self.theta(_pair(inputs, self.name)))
        loc, scale = tf.split(at_least_float32(self.theta(inputs), "theta"), 2, -1)
        return Normal(loc, tf.math.softplus(scale) + MINIMUM_SCALE)

    def prior_distribution(self, event_rank=1):
        loc, log_scale = (as_event(w, event_rank) for w in (self.prior_loc, self.prior_log_scale))
        return Normal(loc, tf.exp(log_scale))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


def _pair(loc_and_scale: Any, name: str) -> list:
    """Both, of tensors or of shapes; a ValueError if there are not two."""
    parts = loc_and_scale if isinstance(loc_and_scale, list | tuple) else []
    if len(parts) == 2 and all(
        hasattr(part, "shape") or hasattr(part, "__len__") for part in parts
    ):
        return list(parts)
    raise ValueError(
        f"layer {name!r} has no kernel: its inputs are theta, a list `[loc, scale]` of two tensors "
        f"[batch, ..., units]. Received: {loc_and_scale}"
    )
