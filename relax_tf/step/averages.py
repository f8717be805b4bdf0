"""The mean over several samples of what evaluation yields."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from relax_tf.keras_internals import attach_mask, mask_of


def mean_over_samples(once: Callable[[], Any], times: int) -> Any:
    """The mean of `times` results of `once()`, a structure of tensors.

    Of tensors that are not floating point the first result. It is a loop in the graph, so that many
    samples are traced as fast as two; on several replicas, where variables cannot be assigned in
    such a loop, it is unrolled.
    """
    first = once()
    if times == 1:
        return first
    leaves = keras.tree.flatten(first)

    def add(step, *totals):
        new = keras.tree.flatten(once())
        sums = [
            t + tf.cast(n, t.dtype) if t.dtype.is_floating else t
            for t, n in zip(totals, new, strict=True)
        ]
        return step + 1, *sums

    state = (tf.constant(1), *map(_wide, leaves))
    if tf.distribute.get_strategy().num_replicas_in_sync > 1:
        for _ in range(times - 1):
            state = add(*state)
    else:
        state = tf.while_loop(lambda step, *_: step < times, add, state)
    means = [_mean(total, leaf, times) for total, leaf in zip(state[1:], leaves, strict=True)]
    return keras.tree.pack_sequence_as(first, means)


def _wide(tensor: tf.Tensor) -> tf.Tensor:
    """In a precision in which sums of many keep theirs."""
    half = tensor.dtype in (tf.float16, tf.bfloat16)
    return tf.cast(tensor, tf.float32) if half else tf.convert_to_tensor(tensor)


def _mean(total: tf.Tensor, like: tf.Tensor, times: int) -> tf.Tensor:
    """The mean in the dtype, and with the Keras mask, of one result."""
    if not like.dtype.is_floating:
        return total
    mean = tf.cast(total / times, like.dtype)
    if (mask := mask_of(like)) is not None:
        attach_mask(mean, mask)
    return mean
