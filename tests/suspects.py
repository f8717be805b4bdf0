"""Models that the certificate looks at: what it is shown, and the words in which it refuses."""

import keras
import numpy as np
import tensorflow as tf

import relax_tf

Binary = relax_tf.StochasticBinaryLayer
Categorical = relax_tf.StochasticCategoricalLayer
Dense = keras.layers.Dense

X = np.random.RandomState(0).normal(size=[12, 3]).astype("f")
Y = np.random.RandomState(1).normal(size=[12, 3]).astype("f")

COUPLED, NOT_REPEATED, WRONG_SLOPE = (
    "couples the examples",
    "cannot be replayed",
    "does not change as its derivative says",
)


def model_of(estimator, after, before=None, loss="mse", **kwargs):
    """x -> (before) -> 4 binary units -> dense -> after -> y."""
    inputs = keras.Input([3])
    hidden = inputs if before is None else before(inputs)
    b = Binary(4, estimator, name="b")(hidden)
    model = relax_tf.RelaxModel(inputs, after(Dense(3)(b)))
    model.compile("sgd", loss=loss, **kwargs)
    return model


class Apply(keras.layers.Layer):
    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, x):
        return self.function(x)


def meeting_in_python(below, above, after):
    """Two layers in branches of which the graph does not show that one reads the other's sample."""
    kept = []
    inputs = keras.Input([3])
    pushed = Apply(lambda x: (kept.append(x), x)[1])(Binary(3, below, name="a")(inputs))
    for _ in range(4):  # so that Keras runs this branch first, however long the other one is
        pushed = keras.layers.Identity()(pushed)
    popped = Apply(lambda x: x + kept[-1])(inputs)
    b = after(Binary(3, above, name="b")(popped))
    model = relax_tf.RelaxModel(inputs, Dense(3)(keras.layers.Add()([pushed, b])))
    model.compile("sgd", loss="mse")
    return model


class LoadBalanced(relax_tf.RelaxModel):
    """A mixture of experts whose cost has the mean of the sampled routes."""

    def __init__(self, estimator):
        super().__init__()
        self.route = Categorical(1, 4, estimator, name="route")
        self.experts = Dense(4)

    def call(self, x):
        return tf.reduce_sum(self.route(x)[:, 0] * self.experts(x), -1, keepdims=True)

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        load = tf.reduce_mean(latents["route"].sample, [0, 1])
        return tf.reduce_sum((y_pred - y) ** 2, -1) + 0.01 * tf.reduce_sum(load**2)


class Penalised(relax_tf.RelaxModel):
    def __init__(self, estimator, penalty):
        super().__init__()
        self.b, self.head, self.penalty = Binary(3, estimator, name="b"), Dense(3), penalty

    def call(self, x):
        return self.head(self.b(x))

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        return tf.reduce_sum((y_pred - y) ** 2, -1) + self.penalty(latents["b"].sample)
