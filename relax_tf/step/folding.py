"""K samples of each example as one batch of K times its size.

Sample k of example i is row `k * batch + i`. It is a faster way to K passes of the batch, where the
model treats every row alike: `relax_tf.step.certificate` finds that out.
"""

from typing import Any

import keras
import tensorflow as tf


def tile(tree: Any, copies: int) -> Any:
    """Every tensor `[batch, ...]` of a structure `copies` times over, `[copies * batch, ...]`."""

    def tiled(value):
        if value is None or copies == 1:
            return value
        value = tf.convert_to_tensor(value)  # an eager `train_on_batch` passes NumPy's arrays on
        return tf.tile(value, [copies] + [1] * (value.shape.rank - 1))

    return keras.tree.map_structure(tiled, tree)


def fold(samples: tf.Tensor) -> tf.Tensor:
    """`[K, batch, ...]` as `[K * batch, ...]`."""
    return tf.reshape(samples, tf.concat([[-1], tf.shape(samples)[2:]], 0))


def unfold(rows: tf.Tensor, copies: int) -> tf.Tensor:
    """`[copies * batch, ...]` as `[copies, batch, ...]`."""
    return tf.reshape(rows, tf.concat([[copies, -1], tf.shape(rows)[1:]], 0))
