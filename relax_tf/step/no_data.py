"""`fit` and `evaluate` without data: for models whose parameters depend on no input."""

from typing import Any

import keras
import tensorflow as tf

from relax_tf.keras_internals import Functional
from relax_tf.validation import positive_integer

_STEPS = {"fit": "steps_per_epoch", "evaluate": "steps"}


def no_data(
    model: keras.Model, method: str, batch_size: int | None, arguments: dict[str, Any]
) -> tf.data.Dataset:
    """Batches without content, `[batch_size, ..., 0]` for each input, without end.

    Nothing is made up for an input that has a content: a model that takes one needs data.

    Args:
        model: a functional model whose inputs are of size 0, or a subclassed model, which is given
            one tensor `[batch_size, 0]`.
        method: `"fit"` or `"evaluate"`.
        batch_size: how many samples of each layer a step draws; by default 32, as in Keras.
        arguments: the other keyword arguments of the method.

    Raises:
        ValueError: if the number of steps is not among them, or an input of the model has a
            content.
    """
    steps = _STEPS[method]
    if arguments.get(steps) is None or not _takes_nothing(model):
        raise ValueError(
            f"`{method}` needs data: `x`, a dataset or a generator. Received: x=None. Without data "
            "it takes a model of inputs of size 0, keras.Input([0]), by "
            f"{method}({steps}=..., batch_size=...)."
        )
    batch_size = positive_integer(32 if batch_size is None else batch_size, "batch_size")
    batch = keras.tree.map_structure(
        lambda s: tf.zeros((batch_size, *s.shape[1:]), s.dtype), _inputs(model)
    )
    options = tf.data.Options()
    options.autotune.enabled = False  # it makes TensorFlow wait when the iterator is dropped
    return tf.data.Dataset.from_tensors(batch).repeat().with_options(options)


def _inputs(model: keras.Model) -> Any:
    """The structure of a model's inputs, as symbols."""
    return model.input if isinstance(model, Functional) else keras.KerasTensor([None, 0])


def _takes_nothing(model: keras.Model) -> bool:
    return all(0 in symbol.shape for symbol in keras.tree.flatten(_inputs(model)))
