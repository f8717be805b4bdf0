"""Numbers of measurements, and how far rounding explains them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from relax_tf.keras_internals import all_layers

ROUNDING = 64  # roundings of a value that do not count
ALIKE = 16  # where the same computation gives the same value to the last bit
_EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
_HALF_PRECISION = ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16")


def epsilon(dtype: Any) -> float:
    """Of rounding to 1, for a floating dtype."""
    return _EPSILON.get(tf.as_dtype(dtype).name, 0.0)


def coarsest_epsilon(model: keras.Model) -> float:
    """Of the dtypes that the model's layers compute in."""
    return max(epsilon(layer.compute_dtype) for layer in all_layers(model))


@contextlib.contextmanager
def in_float32(model: keras.Model) -> Iterator[None]:
    """Layers that compute in half precision compute in float32 meanwhile."""
    half = [layer for layer in all_layers(model) if layer.dtype_policy.name in _HALF_PRECISION]
    policies = [layer.dtype_policy for layer in half]
    try:
        for layer in half:
            layer.dtype_policy = "float32"
        yield
    finally:
        for layer, policy in zip(half, policies, strict=True):
            layer.dtype_policy = policy


@contextlib.contextmanager
def without_tensor_float_32() -> Iterator[None]:
    """Products of float32 are float32 meanwhile: on GPUs TensorFlow rounds factors to 11 bits."""
    enabled = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(enabled)


def computes_in_half() -> bool:
    """Whether the graph that is being traced has a number in half precision; of none, True."""
    if tf.executing_eagerly():
        return True
    graph = tf.compat.v1.get_default_graph().as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    half = {tf.float16.as_datatype_enum, tf.bfloat16.as_datatype_enum}
    return any(attribute.type in half for node in nodes for attribute in node.attr.values())


def size(f: np.ndarray) -> float:
    return float(np.abs(f[np.isfinite(f)]).max(initial=0))


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`|a - b|`; of two numbers that are both not finite 0, of one that is not, infinity."""
    finite = np.isfinite(a) & np.isfinite(b)
    with np.errstate(invalid="ignore"):
        distance = np.where(finite, np.abs(a - b), 0.0)
    return np.where(np.isfinite(a) != np.isfinite(b), np.inf, distance)


def relative_difference(
    a: np.ndarray, b: np.ndarray, alone: np.ndarray | bool = False
) -> np.ndarray:
    """The difference in units of the numbers' sizes, `[n, m]`: no outlier excuses the others.

    A number counts by its own size and the median of its column, and where a column is small by a
    tenth of the largest median, since small numbers may be differences of large ones; unless the
    column is `alone`.
    """
    sizes = np.where(np.isfinite(b), np.abs(b), 0.0)
    medians = np.median(sizes, 0) if len(b) else np.zeros(b.shape[1:])
    least = np.where(alone, 0.0, 0.1 * medians.max(initial=0))
    scale = sizes + np.maximum(medians, least)
    distance = difference(a, b)
    return np.divide(distance, scale, out=np.where(distance > 0, np.inf, 0.0), where=scale > 0)
