"""A step whose cost or estimates are NaN or infinite: it is logged, and changes nothing."""

import math
import warnings
from typing import Any

import tensorflow as tf

from relax_tf.layers import StochasticLayer


def zero_unless(finite: tf.Tensor, gradient: Any) -> Any:
    """The gradient of a step whose cost and estimates are finite; zeros in place of any other.

    A selection, not a conditional: XLA fuses it into the update, and no replica of a distributed
    step leaves the others waiting.
    """

    def selected(values):
        return tf.where(finite, values, tf.zeros_like(values))

    if isinstance(gradient, tf.IndexedSlices):
        values = selected(gradient.values)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return None if gradient is None else selected(gradient)


def warn_if_not_finite(model_name: str, layers: list[StochasticLayer]) -> None:
    """Names the layers whose estimates were not finite since their metrics were last reset."""
    moments = {
        layer.name: float(layer.tracked.metrics["second_moment"].result()) for layer in layers
    }
    names = [name for name, moment in moments.items() if not math.isfinite(moment)]
    if names:
        warnings.warn(
            f"RelaxModel {model_name!r}: the cost, or its gradient estimate, was NaN or infinite "
            f"at the samples of the stochastic layers {names}. The steps in which it was are "
            "logged with loss NaN and their gradients counted as zero, so the weights are as good "
            "as before. `keras.callbacks.TerminateOnNaN()` stops training at the first.",
            RuntimeWarning,
            stacklevel=2,
        )
