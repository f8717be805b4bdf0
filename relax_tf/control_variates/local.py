"""A network for feature maps: the same small one at each position."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

Shape = tuple[int | None, ...]


def map_positions(shapes: Sequence[Shape], at_least: int) -> Shape | None:
    """The axes of positions of parts `[batch, ..., features]`; None if they are less than that.

    Those of the first part, as far as the others have them too: of categorical variables,
    `[batch, height, width, variables, classes]`, and a context `[batch, height, width, features]`
    the height and the width. A context without any of them has no say.
    """
    first, *others = (shape[1:-1] for shape in shapes)
    for other in others:
        first = _common_start(first, other) or first
    return first if len(first) >= at_least else None


def _common_start(a: Shape, b: Shape) -> Shape:
    same = [x == y for x, y in zip(a, b, strict=False)]
    return a[: [*same, False].index(False)]


class LocalMLP(keras.layers.Layer):
    """Hidden layers that all positions share, and the sum of what each makes of its own.

    A position sees its features of each part and the means of the features over all positions (of a
    part of other axes the means alone). So phi grows with the features, and by `hidden_units[-1]`
    weights with each position: 42 thousand for 32x32x64 samples with a context of 64 features,
    where one network over everything has 26 million.

    Args:
        shapes: of the parts, which are given as `[batch, -1]`.
        positions: the axes of positions.
        hidden_units, activation: of the hidden layers.
        outputs: 1, a sum over the positions; or as many numbers for each position as make up this
            many in all.
        dtype: of computation and weights.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        positions: Shape,
        hidden_units: Sequence[int],
        activation: Any,
        outputs: int,
        dtype: Any,
    ):
        super().__init__(dtype=dtype)
        self.shapes = [tuple(shape) for shape in shapes]
        self.positions = tuple(positions)
        self.count = math.prod(positions)
        self.activation = activation
        sizes = [features for shape in self.shapes for features in self._features(shape)]
        he = [keras.initializers.VarianceScaling(2.0 * n / max(sum(sizes), 1) or 1) for n in sizes]
        first, *others = hidden_units
        # The first layer is the sum of several, initialised as one (He).
        self.first = [
            self._dense(first, size, kernel_initializer=init, use_bias=k == 0)
            for k, (size, init) in enumerate(zip(sizes, he, strict=True))
        ]
        self.hidden = [self._dense(n, m) for m, n in zip(hidden_units, others, strict=False)]
        self.of_position = outputs // self.count if outputs > 1 else None
        if self.of_position:
            zeros = {"kernel_initializer": "zeros"}
            self.output_layer = self._dense(self.of_position, hidden_units[-1], **zeros)
        else:
            shape = (self.count, hidden_units[-1])
            self.readout = self.add_weight(name="readout", shape=shape, initializer="zeros")
            self.readout_bias = self.add_weight(
                name="readout_bias", shape=(1,), initializer="zeros"
            )
        self.built = True

    def _is_local(self, shape: Shape) -> bool:
        return shape[1 : 1 + len(self.positions)] == self.positions

    def _features(self, shape: Shape) -> list[int]:
        """How many numbers a position sees of a part: its own, if there are, and the means."""
        if self._is_local(shape):
            return [math.prod(shape[1 + len(self.positions) :])] * 2
        return [shape[-1]]

    def _dense(self, units: int, inputs: int, **kwargs) -> keras.layers.Dense:
        arguments = {"kernel_initializer": "he_normal", "dtype": self.dtype_policy, **kwargs}
        dense = keras.layers.Dense(units, **arguments)
        dense.build((None, inputs))
        return dense

    def call(self, *parts):
        seen = [
            features
            for part, shape in zip(parts, self.shapes, strict=True)
            for features in self._seen(part, shape)
        ]
        h = sum(dense(features) for dense, features in zip(self.first, seen, strict=True))
        for dense in self.hidden:
            h = dense(self.activation(h))
        h = self.activation(h)
        if self.of_position:
            return tf.reshape(self.output_layer(h), [-1, self.count * self.of_position])
        summed = tf.einsum("bpu,pu->b", h, tf.convert_to_tensor(self.readout))
        return summed[:, tf.newaxis] / math.sqrt(self.count) + self.readout_bias

    def _seen(self, part: tf.Tensor, shape: Shape) -> list[tf.Tensor]:
        own = [self.count] if self._is_local(shape) else [math.prod(shape[1:-1])]
        part = tf.reshape(part, [-1, *own, self._features(shape)[0]])
        mean = tf.reduce_mean(part, 1, keepdims=True)
        return [part, mean] if self._is_local(shape) else [mean]
