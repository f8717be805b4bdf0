"""Categorical variables, as one-hot vectors."""

from typing import Any

import keras
import tensorflow as tf

from relax_tf.distributions import OneHotCategorical
from relax_tf.estimators import Estimator
from relax_tf.layers.base import StochasticLayer, as_event
from relax_tf.validation import positive_integer


@keras.saving.register_keras_serializable("relax_tf")
class StochasticCategoricalLayer(StochasticLayer):
    """Categorical variables: `theta = x W + beta` are logits, `b ~ softmax(theta)` is one-hot.

    Inputs `[batch, ..., features]`, outputs `[batch, ..., num_variables, num_classes]` in the
    layer's compute dtype; put a `keras.layers.Flatten` between it and a `Dense`. Trained inside
    `relax_tf.RelaxModel`; with `concrete`, `straight_through` or
    `reinmax` in any model.

    Args:
        num_variables: the number of independent variables.
        num_classes: the number of values of each, at least 2.
        estimator: as in `relax_tf.StochasticBinaryLayer`.
        prior: None; `"uniform"`, all classes equally likely; or `"learned"`, independent
            variables with trainable logits that start at 0. With a prior the layer's KL, in nats,
            joins the cost of each example.
        kl, inference, use_bias, kernel_initializer, bias_initializer, kernel_regularizer,
            bias_regularizer, seed: as in `relax_tf.StochasticBinaryLayer`.

    Raises:
        ValueError: for an unknown estimator or one for continuous samples, an unknown prior, kl
            or inference, `num_variables` below 1 or `num_classes` below 2; when called with
            `training=True` outside of a `RelaxModel` although the estimator needs the cost.

    Example:

    >>> layer = relax_tf.StochasticCategoricalLayer(num_variables=20, num_classes=10)
    >>> sample = layer(tf.zeros([2, 5]))
    >>> sample.shape
    TensorShape([2, 20, 10])
    >>> bool(tf.reduce_all(tf.reduce_sum(sample, -1) == 1))
    True
    """

    family = OneHotCategorical

    def __init__(
        self,
        num_variables: int,
        num_classes: int,
        estimator: str | dict[str, Any] | Estimator = "relaxed_rebar",
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
        num_variables = positive_integer(num_variables, "num_variables")
        num_classes = positive_integer(num_classes, "num_classes")
        if num_classes < 2:
            raise ValueError(f"`num_classes` must be at least 2. Received: {num_classes}")
        super().__init__(
            num_variables * num_classes,
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
        self.num_variables, self.num_classes = num_variables, num_classes

    def build_prior(self):
        shape = (self.num_variables, self.num_classes)
        self.prior_logits = self.add_prior_weight("prior_logits", shape)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.num_variables, self.num_classes)

    def distribution(self, inputs):
        flat = self.dense(inputs)
        leading = [
            size or tf.shape(flat)[axis] for axis, size in enumerate(flat.shape[:-1].as_list())
        ]
        return OneHotCategorical(tf.reshape(flat, [*leading, self.num_variables, self.num_classes]))

    def prior_distribution(self, event_rank=2):
        return OneHotCategorical(as_event(self.prior_logits, event_rank))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_variables": self.num_variables,
            "num_classes": self.num_classes,
        }
