"""Learned control variates: the network `r_phi`, and the mark that keeps `phi` apart."""

from collections.abc import Iterable, Sequence

import keras
import tensorflow as tf

from relax_tf.validation import positive_integer

_MARK = "_relax_tf_control_variate"


def mlp(
    hidden_units: Sequence[int] = (200, 200), activation: str = "relu", dtype: str = "float32"
) -> keras.Sequential:
    """The paper's control variate: a ReLU network from features to one number.

    Its last layer starts at zero, so that a control variate starts out as none at all: `relax`
    as REINFORCE and `relaxed_rebar` as REBAR.

    Args:
        hidden_units: the widths of the hidden layers.
        activation: their activation; it must have a useful gradient, since `dc/dz` is used.
        dtype: of computation and weights.

    Returns:
        An unbuilt Keras model from `[..., features]` to `[..., 1]`.

    Example:

    >>> relax_tf.control_variates.mlp([16])(tf.zeros([2, 5])).shape
    TensorShape([2, 1])
    """
    if isinstance(hidden_units, str) or not isinstance(hidden_units, Iterable):
        raise TypeError(
            "`hidden_units` must be a sequence of integers, one for each hidden layer. "
            f"Received: {hidden_units!r} (of type {type(hidden_units).__name__})"
        )
    layers = [
        keras.layers.Dense(
            positive_integer(units, "hidden_units"),
            activation=activation,
            kernel_initializer="he_normal",
            dtype=dtype,
        )
        for units in hidden_units
    ]
    output = keras.layers.Dense(1, kernel_initializer="zeros", dtype=dtype)
    return keras.Sequential([*layers, output], name="control_variate")


def features(z: tf.Tensor, context: tf.Tensor | None) -> tf.Tensor:
    """What `r_phi` sees: `z` and the context, each flattened to `[batch, -1]`, side by side."""
    parts = [z] if context is None else [z, tf.cast(context, z.dtype)]
    return tf.concat([tf.reshape(part, [tf.shape(part)[0], _size(part)]) for part in parts], -1)


def features_shape(
    z_shape: tuple[int | None, ...], context_shape: tuple[int | None, ...] | None
) -> tuple[int | None, int]:
    """The static shape of `features`, or an error where an event axis has no fixed size."""
    size = 0
    for name, shape in (("theta", z_shape), ("context", context_shape)):
        if shape is None:
            continue
        if None in shape[1:]:
            raise ValueError(
                "a control-variate network needs inputs of a fixed size: every axis but the batch "
                f"must be known. Received {name} of shape {tuple(shape)}"
            )
        size += tf.TensorShape(shape[1:]).num_elements()
    return (None, size)


def _size(part: tf.Tensor) -> int:
    return tf.TensorShape(part.shape[1:]).num_elements()


def mark_control_variates(variables: Iterable[keras.Variable]) -> None:
    """Marks variables as `phi`: `RelaxOptimizer` reads it, paths change across save and load."""
    for variable in variables:
        setattr(variable, _MARK, True)


def is_control_variate(variable: keras.Variable) -> bool:
    """Whether a variable is part of an estimator rather than of the model."""
    return getattr(variable, _MARK, False)
