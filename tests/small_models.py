"""Small models of every kind, and data and optimizers for them."""

import keras
import numpy as np

import relax_tf


def small_model(estimator="relaxed_rebar", **arguments):
    inputs = keras.Input([3])
    b = relax_tf.StochasticBinaryLayer(4, estimator, name="b", **arguments)(inputs)
    return relax_tf.RelaxModel(inputs, keras.layers.Dense(2, name="outputs")(b))


@keras.saving.register_keras_serializable("small_models")
class Subclassed(relax_tf.RelaxModel):
    def __init__(self, estimator="relaxed_rebar", **kwargs):
        super().__init__(**kwargs)
        self.b = relax_tf.StochasticBinaryLayer(4, estimator, name="b")
        self.outputs_layer = keras.layers.Dense(2)
        self.estimator_id = estimator

    def call(self, x, training=None):
        return self.outputs_layer(self.b(x))

    def get_config(self):
        return {**super().get_config(), "estimator": self.estimator_id}


@keras.saving.register_keras_serializable("small_models")
class FunctionalSubclass(relax_tf.RelaxModel):
    def __init__(self):
        inputs = keras.Input([3])
        b = relax_tf.StochasticBinaryLayer(4, name="b")(inputs)
        super().__init__(inputs=inputs, outputs=keras.layers.Dense(2)(b))

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls()


def functional(estimator="relaxed_rebar"):
    """Dropout on both sides of the sample."""
    inputs = keras.Input([3])
    b = relax_tf.StochasticBinaryLayer(4, estimator, (-1, 1), prior="learned", name="b")(
        keras.layers.GaussianNoise(0.1)(inputs)
    )
    outputs = keras.layers.Dense(2)(keras.layers.Dropout(0.5)(b))
    return relax_tf.RelaxModel(inputs, outputs)


def nested():
    """A stochastic layer in a RelaxModel and another in a Sequential, in one RelaxModel."""
    inputs = keras.Input([3])
    above = keras.Sequential(
        [
            keras.layers.Dropout(0.5),
            relax_tf.StochasticCategoricalLayer(2, 3, "rebar", name="c"),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    return relax_tf.RelaxModel(inputs, above(functional()(inputs)))


def optimizer():
    """Two optimizers with state of different kinds."""
    return relax_tf.RelaxOptimizer(
        keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=3, clipnorm=1.0),
        keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=10.0),
    )


def data(count=32):
    random = np.random.RandomState(0)
    return random.normal(size=[count, 3]).astype("f"), random.normal(size=[count, 2]).astype("f")
