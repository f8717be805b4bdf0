"""Small problems whose gradient is known exactly, by enumeration or quadrature.

Each is a cost `f(b, theta)` that knows its distribution: `distribution(theta)` for a tensor
`theta`, `[batch, *event]`, and `gradient(theta)`, the exact `d E[f] / d theta` for one event.
"""

import itertools

import numpy as np
import tensorflow as tf

from relax_tf.distributions import Bernoulli, Normal, OneHotCategorical


def differentiate(expectation, theta):
    """The derivative of a function of a float64 tensor."""
    theta = tf.constant(theta, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(theta)
        expected = expectation(theta)
    return tape.gradient(expected, theta).numpy()


def waves(p, height):
    """Of different heights along the last axis, 0 wherever `p` is 0 or 1."""
    heights = height * (1 + tf.range(p.shape[-1], dtype=p.dtype))
    return tf.reduce_sum(heights * tf.sin(2 * np.pi * p), -1)


def normal_from(theta):
    """`Normal` with its mean and its scale from the two halves of the last axis of `theta`."""
    loc, scale = tf.split(theta, 2, -1)
    return Normal(loc, tf.math.softplus(scale) + 0.1)


def normal_grid(units, nodes=40):
    """Gauss-Hermite points `[nodes ** units, units]` and weights for standard normal variables."""
    x, weights = np.polynomial.hermite_e.hermegauss(nodes)
    points = np.array(list(itertools.product(x, repeat=units)))
    weights = np.array(list(itertools.product(weights / weights.sum(), repeat=units)))
    return points, weights.prod(-1)


class TableCost:
    """A cost with a random value for each of the `2 ** units` samples, `[batch, units] -> [batch]`.

    Between the samples it is their multilinear interpolation, bent by its square, so that the
    relaxed cost is no martingale of the hard one.

    Args:
        units: number of binary variables.
        support: of the samples.
        direct: adds `sum(indicator * theta ** 2)`, a direct dependence on theta.
        seed: of the table.
        wave: the height of waves that are 0 at the samples. Without them the cost is quadratic in
            each coordinate; with them its slopes at the samples say little of its differences.
    """

    def __init__(self, units, support=(0, 1), direct=False, seed=0, wave=0.0):
        self.units, self.support, self.direct, self.wave = units, support, direct, wave
        self.table = np.random.RandomState(seed).normal(size=2**units)
        self.theta = np.random.RandomState(seed).normal(size=units)

    def distribution(self, theta):
        return Bernoulli(theta, self.support)

    def __call__(self, b, theta=None):
        lo, hi = self.support
        p = (b - lo) / (hi - lo)
        weights = tf.ones_like(p[..., :1])
        for i in range(self.units):
            p_i = p[..., i : i + 1]
            weights = tf.concat([weights * (1 - p_i), weights * p_i], -1)
        value = tf.tensordot(weights, tf.constant(self.table, b.dtype), 1)
        value = value + value**2
        if self.wave:
            value += waves(p, self.wave)
        if self.direct:
            value += tf.reduce_sum(p * theta**2, -1)
        return value

    def gradient(self, theta):
        """`d E[f(b, theta)] / d theta` by enumeration, float64 `[units]`."""
        lo, hi = self.support
        indicators = tf.constant(list(itertools.product([0, 1], repeat=self.units)), tf.float64)

        def expectation(theta):
            log_p = tf.math.log_sigmoid(tf.where(indicators > 0, theta, -theta))
            p = tf.exp(tf.reduce_sum(log_p, -1))
            return tf.reduce_sum(p * self(lo + (hi - lo) * indicators, theta))

        return differentiate(expectation, theta)


class CategoricalTableCost:
    """`TableCost` for one-hot variables: `[batch, variables, classes] -> [batch]`."""

    def __init__(self, variables, classes, direct=False, seed=0, wave=0.0):
        self.variables, self.classes, self.direct, self.wave = variables, classes, direct, wave
        self.table = np.random.RandomState(seed).normal(size=classes**variables)
        self.theta = np.random.RandomState(seed).normal(size=[variables, classes])

    def distribution(self, theta):
        return OneHotCategorical(theta)

    def __call__(self, b, theta=None):
        weights = b[..., 0, :]
        for i in range(1, self.variables):
            products = weights[..., :, tf.newaxis] * b[..., i, tf.newaxis, :]
            shape = [*tf.unstack(tf.shape(weights)[:-1]), self.classes ** (i + 1)]
            weights = tf.reshape(products, shape)
        value = tf.tensordot(weights, tf.constant(self.table, b.dtype), 1)
        value = value + value**2
        if self.wave:
            value += tf.reduce_sum(waves(b, self.wave), -1)
        if self.direct:
            value += tf.reduce_sum(b * theta**2, [-2, -1])
        return value

    def gradient(self, theta):
        """`d E[f(b, theta)] / d theta` by enumeration, float64 `[variables, classes]`."""
        one_hots = itertools.product(np.eye(self.classes), repeat=self.variables)
        states = tf.constant(np.array(list(one_hots)))

        def expectation(theta):
            log_p = tf.reduce_sum(states * tf.nn.log_softmax(theta), [-2, -1])
            return tf.reduce_sum(tf.exp(log_p) * self(states, theta))

        return differentiate(expectation, theta)


class Smooth(TableCost):
    """`log(1 + exp(w . b))`."""

    def __call__(self, b, theta=None):
        w = np.random.RandomState(0).normal(size=self.units)
        return tf.math.softplus(tf.reduce_sum(b * tf.constant(w, b.dtype), -1))


class Jumps(TableCost):
    """Rounding, a kink and a stopped gradient: derivatives that say nothing, or wrong things."""

    def __call__(self, b, theta=None):
        value = super().__call__(b)
        frozen = tf.stop_gradient(value * b[..., 0])
        return tf.round(2 * value) + tf.abs(b[..., 1] - 0.5 * b[..., 0]) + frozen


class CategoricalJumps(CategoricalTableCost):
    def __call__(self, b, theta=None):
        value = super().__call__(b)
        return tf.round(2 * value) + tf.nn.relu(b[..., 0, 0] - 0.3) * tf.stop_gradient(value)


class NormalCost:
    """A smooth and bounded cost of normal variables, `[batch, units] -> [batch]`.

    `theta`, `[batch, 2 units]`, is read by `normal_from`.
    """

    def __init__(self, units, direct=False, seed=0):
        random = np.random.RandomState(seed)
        self.units, self.direct = units, direct
        self.amplitude, self.frequency, self.phase = random.uniform(0.5, 1.5, size=[3, units])
        self.theta = 0.7 * random.normal(size=2 * units)

    def distribution(self, theta):
        return normal_from(theta)

    def __call__(self, b, theta=None):
        waves = self.amplitude * tf.sin(self.frequency * b + self.phase)
        value = tf.reduce_sum(waves, -1)
        value = value + value**2
        if self.direct:
            value += tf.reduce_sum(tf.sin(b) * theta[..., : self.units] ** 2, -1)
        return value

    def gradient(self, theta):
        """`d E[f(b, theta)] / d theta` by quadrature, float64 `[2 units]`."""
        points, weights = normal_grid(self.units)

        def expectation(theta):
            dist = normal_from(theta[tf.newaxis])
            return tf.reduce_sum(weights * self(dist.loc + dist.scale * points, theta))

        return differentiate(expectation, theta)


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
