"""A model whose noise comes with the data, so that it is the same however a batch is shared out."""

import keras
import numpy as np
import tensorflow as tf

import relax_tf

FEATURES, UNITS = 3, 4


def two_replicas():
    """A strategy that any test may make: collectives remember those of an earlier strategy."""
    reduction = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], reduction)


class Given(relax_tf.distributions.Bernoulli):
    """Bernoulli variables whose noise is given."""

    def __init__(self, logits, support, eps):
        super().__init__(logits, support)
        self.eps = eps

    def with_theta(self, theta):
        return Given(theta, self.support, self.eps)

    def noise(self, seed=None, sample_shape=()):
        return self.eps


class NoiseFromInputs(relax_tf.StochasticBinaryLayer):
    """Takes `[batch, FEATURES + UNITS]`: features, and uniform noise for the units."""

    def build(self, input_shape):
        super().build((*input_shape[:-1], FEATURES))
        self.input_spec = keras.InputSpec(min_ndim=2, axes={-1: FEATURES + UNITS})

    def call(self, inputs, training=None):
        self._u = inputs[:, FEATURES:]
        return super().call(inputs[:, :FEATURES], training)

    def distribution(self, inputs):
        dist = super().distribution(inputs)
        return Given(dist.theta, dist.support, tf.math.log(self._u) - tf.math.log1p(-self._u))


class MeanSquare(keras.layers.Layer):
    """Adds the mean square of what passes through to the loss."""

    def call(self, x):
        self.add_loss(tf.reduce_mean(x**2))
        return x


def build(estimator="relaxed_rebar", loss="mse", rate=0.1, added=True, **arguments):
    """Every kind of term: loss, learned prior, weight regulariser and, if wanted, added loss."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input([FEATURES + UNITS])
    b = NoiseFromInputs(
        UNITS, estimator, prior="learned", kernel_regularizer=keras.regularizers.L2(0.1), name="b"
    )(inputs)
    outputs = keras.layers.Dense(2, bias_regularizer=keras.regularizers.L1(0.1))(b)
    if added:  # to what is learned for its sake alone
        outputs += 0.0 * MeanSquare()(keras.layers.Dense(2)(inputs))
    model = relax_tf.RelaxModel(inputs, outputs)
    optimizer = relax_tf.RelaxOptimizer(
        keras.optimizers.SGD(rate, momentum=0.9), keras.optimizers.SGD(rate / 10)
    )
    model.compile(optimizer, loss=loss, metrics=["mae"], **arguments)
    return model


def data(count=32):
    """x, y and sample weights."""
    random = np.random.RandomState(0)
    features = random.normal(size=[count, FEATURES])
    noise = random.uniform(0.01, 0.99, size=[count, UNITS])
    y, weight = random.normal(size=[count, 2]), random.uniform(0.5, 2, size=[count])
    return tuple(np.float32(part) for part in (np.concatenate([features, noise], -1), y, weight))
