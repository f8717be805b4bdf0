"""Seeds and reparameterisation noise: `z = theta + noise`.

All noise comes from the counter-based Philox generator: on CPU under XLA it is about twenty times
faster than TensorFlow's default choice.
"""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_OF_NOISE, _OF_SEEDS = 0, 1  # the second word of a counter


def make_seed(seed: object = None) -> tf.Tensor:
    """Turns what users call a seed into a stateless seed, an int32 tensor of shape `[2]`.

    Args:
        seed: `None` (fresh noise at every call, also inside a `tf.function`; governed by
            `keras.utils.set_random_seed`), an integer (the same noise at every call), a
            `keras.random.SeedGenerator` (its next value) or an integer tensor of shape `[2]`.

    Raises:
        TypeError: for anything else.
    """
    if seed is None:
        return tf.random.uniform([2], tf.int32.min, tf.int32.max, tf.int32)
    if isinstance(seed, keras.random.SeedGenerator):
        return tf.cast(seed.next(), tf.int32)
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        low, high = int(seed) & 0xFFFFFFFF, (int(seed) >> 32) & 0xFFFFFFFF
        return tf.constant(np.array([low, high], np.uint32).view(np.int32))
    if tf.is_tensor(seed) or isinstance(seed, np.ndarray):
        tensor = tf.convert_to_tensor(seed)
        if tensor.dtype.is_integer and tensor.shape.is_compatible_with([2]):
            return tf.cast(tensor, tf.int32)
    raise TypeError(
        "`seed` must be None, an integer, a keras.random.SeedGenerator or an integer tensor of "
        f"shape [2]. Received: {seed!r} (of type {type(seed).__name__})"
    )


def fold_in(seed: tf.Tensor, data: int | tf.Tensor) -> tf.Tensor:
    """A new seed, independent of `seed` and different for each integer `data`."""
    return _bits([2], tf.int32, seed, data, _OF_SEEDS)


def _bits(
    shape: Any, dtype: tf.DType, seed: tf.Tensor, start: int | tf.Tensor, purpose: int
) -> tf.Tensor:
    """Random integers: Philox with the seed as its key and the counter from `start` on.

    TensorFlow's own functions draw key and counter from the seed first, by another Philox and two
    dozen operations. The purpose is the counter's upper word: noise and seeds share no block.
    """
    return tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=shape,
        key=tf.reshape(tf.bitcast(seed, tf.uint64), [1]),
        counter=tf.cast(tf.stack([start, purpose]), tf.uint64),
        alg=tf.random.Algorithm.PHILOX.value,
        dtype=dtype,
    )


def substreams(seed: tf.Tensor, count: int) -> list[tf.Tensor]:
    """So many seeds, apart from each other, from `seed`, and from it with a small number folded in.

    A model's passes fold in the number of a layer's call.
    """
    return [fold_in(seed, 2**20 + k) for k in range(count)]


def uniform(shape: tf.TensorShape | tf.Tensor, dtype: tf.DType, seed: tf.Tensor) -> tf.Tensor:
    """Uniform noise on the open interval (0, 1): never 0, never 1, symmetric about 1/2.

    The midpoints of `2 ** m` equal cells, where `m` is the length of the mantissa; each is exact
    in `dtype`. Made from random bits, which are the same with and without XLA; TensorFlow's own
    floats are not.
    """
    bits_dtype, mantissa = {tf.float32: (tf.uint32, 23), tf.float64: (tf.uint64, 52)}[dtype]
    bits = _bits(shape, bits_dtype, seed, 0, _OF_NOISE)
    cell = tf.bitwise.right_shift(bits, tf.constant(8 * bits_dtype.size - mantissa, bits_dtype))
    return (tf.cast(cell, dtype) + 0.5) * 2.0**-mantissa


def logistic(shape: tf.TensorShape | tf.Tensor, dtype: tf.DType, seed: tf.Tensor) -> tf.Tensor:
    """Standard logistic noise, `logit(u) = log(u) - log(1 - u)`."""
    u = uniform(shape, dtype, seed)
    return tf.math.log(u) - tf.math.log1p(-u)


def gumbel(shape: tf.TensorShape | tf.Tensor, dtype: tf.DType, seed: tf.Tensor) -> tf.Tensor:
    """Standard Gumbel noise, `-log(-log(u))`: `u` is neither 0 nor 1, so it is always finite."""
    return -tf.math.log(-tf.math.log(uniform(shape, dtype, seed)))


def normal(shape: tf.TensorShape | tf.Tensor, dtype: tf.DType, seed: tf.Tensor) -> tf.Tensor:
    """Standard normal noise, `sqrt(2) erfinv(2 u - 1)`, whose argument is exact in `dtype`."""
    return math.sqrt(2.0) * tf.math.erfinv(2.0 * uniform(shape, dtype, seed) - 1.0)


def mostly_proportional(weights: tf.Tensor, uniform_share: float = 0.1) -> tf.Tensor:
    """Probabilities, `[..., n]`: of a mixture of one proportional to `weights` and a uniform one.

    Where all weights are 0, uniform.
    """
    sums = tf.reduce_sum(weights, -1, keepdims=True)
    share = tf.where(sums > 0, tf.constant(uniform_share, weights.dtype), 1.0)
    n = tf.cast(tf.maximum(tf.shape(weights)[-1], 1), weights.dtype)
    return (1 - share) * tf.math.divide_no_nan(weights, sums) + share / n


def one_of(probabilities: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws one of n with these probabilities, `[batch, n]`, as a one-hot vector of that shape.

    By the inverse of the cumulative distribution: one uniform number for each example, where
    Gumbel's trick would take n logarithms.
    """
    shape, dtype = tf.shape(probabilities), probabilities.dtype
    below = tf.cumsum(probabilities, -1)
    u = uniform(tf.stack([shape[0], 1]), dtype, seed)
    index = tf.reduce_sum(tf.cast(below < u, tf.int32), -1)
    return tf.one_hot(tf.minimum(index, shape[-1] - 1), shape[-1], dtype=dtype)
