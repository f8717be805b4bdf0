"""Categorical variables, as one-hot vectors."""

import math
from typing import Any

import keras
import tensorflow as tf

from relax_tf.distributions import OneHotCategorical
from relax_tf.estimators import Estimator
from relax_tf.layers.base import StochasticLayer
from relax_tf.layers.prior import as_event
from relax_tf.validation import integer_of_at_least, positive_integer


@keras.saving.register_keras_serializable("relax_tf")
class StochasticCategoricalLayer(StochasticLayer):
    """Categorical variables: `theta = x W + beta` are logits, `b ~ softmax(theta)` is one-hot.

    Inputs `[batch, ..., features]`, outputs `[batch, ..., num_variables, num_classes]` in the
    layer's compute dtype; put a `keras.layers.Flatten` between it and a `Dense`. With
    `num_variables=None, num_classes=None` there are no W and beta: the inputs are the logits,
    `[batch, ..., variables, classes]`. Trained inside `relax_tf.RelaxModel`; with `concrete`,
    `straight_through` or `reinmax` in any model.

    Args:
        num_variables: the number of independent variables, or None for inputs that are logits.
        num_classes: the number of values of each, at least 2; None likewise.
        estimator: as in `relax_tf.StochasticBinaryLayer`; first to try is `"midpoint"` if
            TensorFlow can differentiate the cost, and `"rloo"` or `"relax"` for a black box.
        prior: None; `"uniform"`, all classes equally likely; or `"learned"`, independent
            variables with trainable logits that start at 0. With a prior the layer's KL, in nats,
            joins the cost of each example.
        kl, inference, use_bias, kernel_initializer, bias_initializer, kernel_regularizer,
            bias_regularizer, seed: as in `relax_tf.StochasticBinaryLayer`.

    Raises:
        ValueError: for an unknown estimator or one for continuous samples, an unknown prior, kl
            or inference, `num_variables` below 1 or `num_classes` below 2, one of the two without
            the other, or a setting of W and beta without both; for logits without axes
            `[batch, variables, classes]`; when called with `training=True` outside of a
            `RelaxModel` although the estimator needs the cost.

    Example:

    >>> layer = relax_tf.StochasticCategoricalLayer(num_variables=20, num_classes=10)
    >>> sample = layer(tf.zeros([2, 5]))
    >>> sample.shape
    TensorShape([2, 20, 10])
    >>> bool(tf.reduce_all(tf.reduce_sum(sample, -1) == 1))
    True

    Logits of your own, one variable of four classes:

    >>> logits = keras.layers.Reshape([1, 4])(keras.layers.Dense(4)(tf.zeros([2, 5])))
    >>> relax_tf.StochasticCategoricalLayer(None, None)(logits).shape
    TensorShape([2, 1, 4])
    """

    family = OneHotCategorical
    unit_rank = 2
    theta_shape = "[batch, ..., variables, classes]"

    def __init__(
        self,
        num_variables: int | None,
        num_classes: int | None,
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
        size = _checked_size(num_variables, num_classes)
        super().__init__(
            None if size is None else math.prod(size),
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
        self.num_variables, self.num_classes = size or (None, None)

    def build_prior(self, units):
        self.prior_logits = self.add_prior_weight("prior_logits", units)

    def _sample_shape(self, inputs_shape):
        if self.num_variables is None:
            return inputs_shape
        return (*inputs_shape[:-1], self.num_variables, self.num_classes)

    def distribution(self, inputs):
        flat = self.theta(inputs)
        if self.num_variables is None:
            return OneHotCategorical(flat)
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


def _checked_size(num_variables: int | None, num_classes: int | None) -> tuple[int, int] | None:
    """Both numbers; None if both are None."""
    if num_variables is None and num_classes is None:
        return None
    if num_variables is None or num_classes is None:
        raise ValueError(
            "`num_variables` and `num_classes` must be given both, or be None both for inputs that "
            f"are logits. Received: num_variables={num_variables}, num_classes={num_classes}"
        )
    num_variables = positive_integer(num_variables, "num_variables")
    return num_variables, integer_of_at_least(2, num_classes, "num_classes")
