"""Small problems whose gradient is known exactly, by enumeration."""

import itertools

import numpy as np
import tensorflow as tf


class TableCost:
    """A cost with a random value for each of the `2 ** units` samples, `[batch, units] -> [batch]`.

    Between the samples it is their multilinear interpolation, bent by its square, so that the
    relaxed cost is no martingale of the hard one.

    Args:
        units: number of binary variables.
        support: of the samples.
        direct: adds `sum(indicator * theta ** 2)`, a direct dependence on theta.
        seed: of the table.
    """

    def __init__(self, units, support=(0, 1), direct=False, seed=0):
        self.units, self.support, self.direct = units, support, direct
        self.table = np.random.RandomState(seed).normal(size=2**units)

    def __call__(self, b, theta=None):
        lo, hi = self.support
        p = (b - lo) / (hi - lo)
        weights = tf.ones_like(p[..., :1])
        for i in range(self.units):
            p_i = p[..., i : i + 1]
            weights = tf.concat([weights * (1 - p_i), weights * p_i], -1)
        value = tf.linalg.matvec(weights, tf.constant(self.table, b.dtype))
        value = value + value**2
        if self.direct:
            value += tf.reduce_sum(p * theta**2, -1)
        return value

    def gradient(self, theta):
        """`d E[f(b, theta)] / d theta` by enumeration, float64 `[units]`."""
        theta = tf.constant(theta, tf.float64)
        lo, hi = self.support
        with tf.GradientTape() as tape:
            tape.watch(theta)
            indicators = tf.constant(list(itertools.product([0, 1], repeat=self.units)), tf.float64)
            log_p = tf.math.log_sigmoid(tf.where(indicators > 0, theta, -theta))
            p = tf.exp(tf.reduce_sum(log_p, -1))
            expected = tf.reduce_sum(p * self(lo + (hi - lo) * indicators, theta))
        return tape.gradient(expected, theta).numpy()


def z_scores(samples, expected):
    """How many standard errors the mean of `samples`, `[draws, ...]`, is from `expected`."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    return (samples.mean(0) - expected) / np.maximum(error, 1e-5)  # of float32 rounding


def shake(variables, scale=0.3, seed=0):
    """Moves variables away from their initial values, so that no term of an estimate is zero."""
    random = np.random.RandomState(seed)
    for variable in variables:
        variable.assign(variable + scale * random.normal(size=variable.shape))
