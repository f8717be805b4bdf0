"""Binary units."""

from typing import Any

import keras

from relax_tf.distributions import Bernoulli
from relax_tf.distributions.bernoulli import check_support
from relax_tf.estimators import Estimator
from relax_tf.layers.base import StochasticLayer
from relax_tf.layers.prior import as_event
from relax_tf.validation import positive_integer


@keras.saving.register_keras_serializable("relax_tf")
class StochasticBinaryLayer(StochasticLayer):
    """Binary units: `theta = x W + beta` are logits, `b ~ Bernoulli(sigmoid(theta))`.

    Inputs `[batch, ..., features]`, outputs `[batch, ..., units]` in the layer's compute dtype.
    With `units=None` there are no W and beta: the inputs are the logits, `[batch, ..., units]`.
    Trained inside `relax_tf.RelaxModel`; with `concrete`, `straight_through` or `reinmax` in any
    model.

    Args:
        units: the number of binary units, or None for inputs that are logits.
        estimator: how gradients come back through the sample: an id, a config or an `Estimator`.
            All are in `relax_tf.estimators`; first to try are `"flip"` (`"midpoint"` where samples
            feed another such layer) if TensorFlow can differentiate the cost, and `"arms"` or
            `"relax"` for a black box.
        support: the two values that a unit emits, `(0, 1)` or `(-1, 1)` for example.
        prior: None; `"uniform"`, both values equally likely; or `"learned"`, independent units
            with trainable logits that start at 0. With a prior the layer's KL, in nats, joins
            the cost of each example.
        kl: `"analytic"` or `"sampled"` (`log p(b|theta) - log prior(b)` at the sample).
        inference: what to emit outside training, `"sample"`, `"mean"` (`E[b]`) or `"mode"` (the
            most probable value of each unit); may be assigned later. See the property.
        use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer: as
            in `keras.layers.Dense`; not with `units=None`.
        seed: an integer for the layer's noise.

    Raises:
        ValueError: for an unknown estimator or one for continuous samples, an unknown prior, kl
            or inference, `units` below 1, a `support` that is not an increasing pair, or a setting
            of W and beta with `units=None`; for logits without axes `[batch, units]`; when called
            with `training=True` outside of a `RelaxModel` although the estimator needs the cost.

    Example:

    >>> layer = relax_tf.StochasticBinaryLayer(3, support=(-1, 1))
    >>> sample = layer(tf.zeros([2, 5]))
    >>> bool(tf.reduce_all(tf.abs(sample) == 1))
    True

    Logits of your own:

    >>> inputs = keras.Input([5])
    >>> logits = keras.layers.Dense(3)(keras.layers.Dense(8, "tanh")(inputs))
    >>> relax_tf.StochasticBinaryLayer(units=None)(logits).shape
    (None, 3)

    A one-layer VAE:

    >>> inputs = keras.Input([784])
    >>> b = relax_tf.StochasticBinaryLayer(200, prior="uniform")(inputs)
    >>> outputs = keras.layers.Dense(784)(b)
    >>> vae = relax_tf.RelaxModel(inputs, outputs)
    >>> vae.compile("adam", loss=relax_tf.losses.BernoulliNegativeLogLikelihood())
    """

    family = Bernoulli

    def __init__(
        self,
        units: int | None,
        estimator: str | dict[str, Any] | Estimator = "relaxed_rebar",
        support: tuple[float, float] = (0, 1),
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
            units,
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
        self.support = support

    def __setattr__(self, name, value):
        super().__setattr__(name, check_support(value) if name == "support" else value)

    @property
    def _assigned(self):
        return *super()._assigned, self.support

    def build_prior(self, units):
        self.prior_logits = self.add_prior_weight("prior_logits", units)

    def _sample_shape(self, inputs_shape):
        return inputs_shape if self.units is None else (*inputs_shape[:-1], self.units)

    def distribution(self, inputs):
        return Bernoulli(self.theta(inputs), self.support)

    def prior_distribution(self, event_rank=1):
        return Bernoulli(as_event(self.prior_logits, event_rank), self.support)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units, "support": self.support}
