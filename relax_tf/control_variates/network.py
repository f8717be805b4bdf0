"""What a control-variate network is given, and what is asked of it."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf


class ControlVariate(keras.layers.Layer):
    """A network `r_phi` that is called with `z` and the context apart, `call(z, context=None)`.

    Any Keras layer may be a control variate; others receive both side by side in one tensor. Apart
    they cost less: `dc/dz` and its derivatives then touch the weights of `z` only, and the context
    (an image, say) may be much larger than `z`.

    A subclass takes `z` `[batch, n]` and the context `[batch, m]` or None and returns `[batch, 1]`
    or `[batch]`. Its `build(z_shape, context_shape=None)` makes its variables. It may override
    `value_and_derivative` with something cheaper than backpropagation.

    Attributes:
        shapes: of z and the context before they were flattened, known when the network is built.
    """

    shapes: Sequence[tuple[int | None, ...]] = ()

    def value_and_derivative(
        self, z: tf.Tensor, context: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """`c(z)`, `[batch]`, and `dc/dz`, `[batch, n]`, both differentiable in the variables."""
        return by_backpropagation(lambda z: evaluate_network(self, z, context), z)


def by_backpropagation(
    function: Callable[[tf.Tensor], tf.Tensor], z: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """`function(z)`, `[batch]`, and its derivative for each example (None if it has none)."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(z)
        value = function(z)
    return value, tape.gradient(value, z)


def build_network(network: keras.layers.Layer, **shapes: tuple[int | None, ...] | None) -> None:
    """Builds a network for the parts that `evaluate_network` will give it.

    A symbolic call builds any layer or model, also one without a `build` of its own.

    Args:
        network: the network.
        **shapes: of each part by name, `[batch, ...]`; None for a part that there is not.
    """
    given = {name: shape for name, shape in shapes.items() if shape is not None}
    for name, shape in given.items():
        if None in shape[1:]:
            raise ValueError(
                "a control-variate network needs inputs of a fixed size: every axis but the batch "
                "must be known. For events of any size use an estimator without a network: 'flip', "
                "'midpoint' or 'rebar' if the cost has a derivative, 'disarm', 'arms' or 'rloo' if "
                f"not. Received {name} of shape {tuple(shape)}"
            )
    sizes = [_size(shape) for shape in given.values()]
    if not isinstance(network, ControlVariate):
        sizes = [sum(sizes)]
    elif not network.built:
        network.shapes = [(None, *shape[1:]) for shape in given.values()]
    network(*(keras.KerasTensor((None, size), network.compute_dtype) for size in sizes))


def evaluate_network(network: keras.layers.Layer, *parts: tf.Tensor | None) -> tf.Tensor:
    """The network's number for each example, `[batch]`, in the dtype of the first part.

    Args:
        network: a `ControlVariate`, which receives the parts as they are (flattened to
            `[batch, -1]`), or any other layer, which receives them side by side.
        parts: `z` and the context, or what else the network sees, `[batch, ...]` each; None for
            a part that there is not.
    """
    value = evaluate_outputs(network, *parts)
    if value.shape.rank == 2 and value.shape[-1] == 1:
        value = tf.squeeze(value, -1)
    if not value.shape.is_compatible_with(parts[0].shape[:1]):
        raise ValueError(
            f"the network {network.name!r} must return shape [batch, 1] or [batch]. "
            f"Received shape: {tuple(value.shape)}"
        )
    return value


def evaluate_outputs(network: keras.layers.Layer, *parts: tf.Tensor | None) -> tf.Tensor:
    """Whatever the network returns for the parts, in the dtype of the first one."""
    inputs = _flat(*parts)
    if not isinstance(network, ControlVariate):
        inputs = [tf.concat(inputs, -1)]
    return tf.cast(network(*inputs), inputs[0].dtype)


def differentiate_network(
    network: keras.layers.Layer, z: tf.Tensor, context: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """`evaluate_network(network, z, context)` and its derivative in `z` (None if it has none)."""
    if not isinstance(network, ControlVariate):
        return by_backpropagation(lambda z: evaluate_network(network, z, context), z)
    flat_z, *rest = _flat(z, context)
    value, derivative = network.value_and_derivative(flat_z, *rest)
    return value, tf.reshape(derivative, tf.shape(z))


def _flat(*parts: tf.Tensor | None) -> list[tf.Tensor]:
    """The parts that there are, as `[batch, -1]`, in the dtype of the first."""
    given = [part for part in parts if part is not None]
    return [
        tf.reshape(tf.cast(part, given[0].dtype), [tf.shape(part)[0], _size(part.shape)])
        for part in given
    ]


def _size(shape: tuple[int | None, ...]) -> int:
    """The elements of one example."""
    return tf.TensorShape(shape[1:]).num_elements()
