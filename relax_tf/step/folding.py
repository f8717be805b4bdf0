"""K samples of each example as one batch of K times its size, so that any Keras layer serves them.

Sample k of example i is row `k * batch + i`.
"""

import contextlib
import threading
from typing import Any

import keras
import tensorflow as tf

_folded = threading.local()


@contextlib.contextmanager
def folded(copies: int):
    """While active, a batch holds this many copies of each example."""
    before = copies_in_batch()
    _folded.copies = copies
    try:
        yield
    finally:
        _folded.copies = before


def copies_in_batch() -> int:
    """How often each example of the user's batch is in the batch that layers and losses see."""
    return getattr(_folded, "copies", 1)


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
