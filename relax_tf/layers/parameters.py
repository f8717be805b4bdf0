"""Parameters that depend on no input: static gates, design variables of a black box."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from relax_tf.validation import positive_integers


@keras.saving.register_keras_serializable("relax_tf")
class Parameters(keras.layers.Layer):
    """Trainable numbers, the same for each example, whatever the input is.

    Of the input `[batch, ...]` only the batch size counts: it is the number of samples drawn where
    a stochastic layer follows. Outputs `[batch, *shape]`. A model that needs no data at all has
    inputs of size 0 and is trained by `fit(steps_per_epoch=..., batch_size=...)`.

    Args:
        shape: of one example's parameters, a sequence of positive integers.
        initializer, regularizer, constraint: as in `keras.layers.Layer.add_weight`; by default they
            start at 0, which as logits means equal probabilities.

    Attributes:
        values: the parameters, a variable of shape `shape`, once the layer was called.

    Raises:
        TypeError, ValueError: if `shape` is not a sequence of positive integers.

    Example: the best of eight designs whose cost is a black box, from 16 samples a step.

    >>> class Search(relax_tf.RelaxModel):
    ...     def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
    ...         return tf.reduce_sum(y_pred * tf.constant([3.0, -1.0, 0.5]), -1)
    >>> inputs = keras.Input([0])
    >>> logits = relax_tf.Parameters([3])(inputs)
    >>> model = Search(inputs, relax_tf.StochasticBinaryLayer(None, "relax")(logits))
    >>> model.compile(keras.optimizers.Adam(0.1))
    >>> history = model.fit(steps_per_epoch=100, batch_size=16, verbose=0)
    >>> model.layers[-1].inference = "mode"
    >>> model.predict(tf.zeros([1, 0]), verbose=0)
    array([[0., 1., 0.]], dtype=float32)
    """

    def __init__(
        self,
        shape: Sequence[int],
        initializer: Any = "zeros",
        regularizer: Any = None,
        constraint: Any = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.shape = tuple(positive_integers(shape, "shape"))
        self.initializer = keras.initializers.get(initializer)
        self.regularizer = keras.regularizers.get(regularizer)
        self.constraint = keras.constraints.get(constraint)

    def build(self, inputs_shape):
        self.values = self.add_weight(
            name="values",
            shape=self.shape,
            initializer=self.initializer,
            regularizer=self.regularizer,
            constraint=self.constraint,
        )

    def call(self, inputs):
        batch = tf.shape(next(i for i in keras.tree.flatten(inputs) if i is not None))[:1]
        return tf.broadcast_to(tf.convert_to_tensor(self.values), tf.concat([batch, self.shape], 0))

    def compute_output_shape(self, inputs_shape):
        first = inputs_shape[0]
        return (first[0] if isinstance(first, list | tuple) else first, *self.shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "shape": self.shape,
            "initializer": keras.initializers.serialize(self.initializer),
            "regularizer": keras.regularizers.serialize(self.regularizer),
            "constraint": keras.constraints.serialize(self.constraint),
        }
