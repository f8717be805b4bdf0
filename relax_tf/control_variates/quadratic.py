"""Slopes of a cost that is known by its values alone, learned as those of a quadratic form."""

from typing import Any

import keras
import tensorflow as tf

from relax_tf.control_variates.mlp import MLP
from relax_tf.control_variates.network import ControlVariate

# How far one step of an optimizer moves each of the two terms, of which the second has a weight for
# each pair of units. Larger ones learn sooner and stay noisier.
_FIRST_ORDER, _SECOND_ORDER = 2.0, 15.0


@keras.saving.register_keras_serializable("relax_tf")
class QuadraticSlopes(ControlVariate):
    """The slope in each unit at the midpoint m of two samples of mean p, both terms learned:

        a(m) = r(m, context) + H (m - p),    H symmetric

    A cost's second-order expansion about p has these slopes, with its gradient as r and its Hessian
    as H. H is the same for all examples, so that every pair of samples teaches it, and it learns
    sooner than a network does (examples/results/variance.md). r, an MLP, is what depends on the
    example. Both start at zero.

    Args:
        units: how many, n. H has n^2 weights.
        dtype: of computation and weights.
    """

    def __init__(self, units: int, dtype: Any = "float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        self.units = units
        self.first_order = MLP([64], outputs=units, local=False, dtype=dtype)

    def build(self, midpoint_shape, deviation_shape, context_shape=None):
        self.first_order.build(midpoint_shape, context_shape)
        shape = (self.units, self.units)
        self.hessian = self.add_weight(name="hessian", shape=shape, initializer="zeros")

    def call(self, midpoint, deviation, context=None):
        """From `2 m - 1`, `2 (m - p)` and the context, flat; `[batch, units]`."""
        hessian = tf.convert_to_tensor(self.hessian)
        hessian = (hessian + tf.transpose(hessian)) / 2
        first, second = self.first_order(midpoint, context), tf.matmul(deviation, hessian)
        return _FIRST_ORDER * first + _SECOND_ORDER * second

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}
