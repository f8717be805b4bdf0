"""Learned control variates: the network `r_phi`, and the mark that keeps `phi` apart."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from relax_tf.validation import positive_integer, positive_integers

__all__ = ["MLP", "ControlVariate"]

_MARK = "_relax_tf_control_variate"


class ControlVariate(keras.layers.Layer):
    """A network `r_phi` that is called with `z` and the context apart, `call(z, context=None)`.

    Any Keras layer may be a control variate; others receive both side by side in one tensor. Apart
    they cost less: `dc/dz` and its derivatives then touch the weights of `z` only, and the context
    (an image, say) may be much larger than `z`.

    A subclass takes `z` `[batch, n]` and the context `[batch, m]` or None and returns `[batch, 1]`
    or `[batch]`. Its `build(z_shape, context_shape=None)` makes its variables. It may override
    `value_and_derivative` with something cheaper than backpropagation.
    """

    def value_and_derivative(
        self, z: tf.Tensor, context: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """`c(z)`, `[batch]`, and `dc/dz`, `[batch, n]`, both differentiable in the variables."""
        return by_backpropagation(lambda z: evaluate_network(self, z, context), z)


@keras.saving.register_keras_serializable("relax_tf")
class MLP(ControlVariate):
    """The paper's control variate: a ReLU network from `z` and the context to one number.

    Its last layer starts at zero, so that a control variate starts out as none at all: `relax`
    as REINFORCE and `relaxed_rebar` as REBAR.

    Args:
        hidden_units: the widths of the hidden layers, at least one.
        activation: their activation; it must have a useful gradient, since `dc/dz` is used.
        outputs: how many numbers: 1, unless the network gives slopes (`relaxed_disarm`).
        dtype: of computation and weights.

    Raises:
        TypeError, ValueError: if `hidden_units` is not a sequence of positive integers.

    Example:

    >>> network = relax_tf.control_variates.MLP([16])
    >>> network(tf.zeros([2, 5]), tf.ones([2, 3])).shape
    TensorShape([2, 1])
    """

    def __init__(
        self,
        hidden_units: Sequence[int] = (200, 200),
        activation: Any = "relu",
        outputs: int = 1,
        dtype: Any = "float32",
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)
        self.outputs = positive_integer(outputs, "outputs")
        self.hidden_units = positive_integers(hidden_units, "hidden_units")
        self.activation = keras.activations.get(activation)
        self.of_z, self.of_context = None, None
        self.hidden = [self._dense(units) for units in self.hidden_units[1:]]
        self.output_layer = self._dense(self.outputs, kernel_initializer="zeros")

    def _dense(self, units: int, **kwargs) -> keras.layers.Dense:
        arguments = {"kernel_initializer": "he_normal", "dtype": self.dtype_policy, **kwargs}
        return keras.layers.Dense(units, **arguments)

    def build(self, z_shape, context_shape=None):
        # The first layer, `[z, context] W`, is the sum of two, initialised as one (He).
        parts = [shape[-1] for shape in (z_shape, context_shape) if shape is not None]
        variances = [2.0 * part / max(sum(parts), 1) for part in parts]
        first, *_ = he = [keras.initializers.VarianceScaling(v or 1.0) for v in variances]
        self.of_z = self._dense(self.hidden_units[0], kernel_initializer=first)
        self.of_z.build((None, parts[0]))
        if context_shape is not None:
            self.of_context = self._dense(
                self.hidden_units[0], kernel_initializer=he[1], use_bias=False
            )
            self.of_context.build((None, parts[1]))
        for dense, size in zip([*self.hidden, self.output_layer], self.hidden_units, strict=True):
            dense.build((None, size))

    def _check_inputs(self, z, context) -> None:
        for name, dense, part in (("z", self.of_z, z), ("context", self.of_context, context)):
            built = None if dense is None else dense.kernel.shape[0]
            given = None if part is None else part.shape[-1]
            if built != given:
                raise ValueError(
                    f"the network {self.name!r} was built for a `{name}` of {built} numbers an "
                    f"example. Received: {given}"
                )

    def call(self, z, context=None):
        self._check_inputs(z, context)
        h = self.of_z(z)
        if context is not None:
            h += self.of_context(context)
        for dense in self.hidden:
            h = dense(self.activation(h))
        return self.output_layer(self.activation(h))

    def value_and_derivative(self, z, context=None):
        if self.activation is not keras.activations.relu or self.outputs != 1:
            return super().value_and_derivative(z, context)
        self._check_inputs(z, context)
        first = [self.of_z] if context is None else [self.of_z, self.of_context]
        kernels = [dense.kernel for dense in (*first, *self.hidden, self.output_layer)]
        biases = [dense.bias for dense in (self.of_z, *self.hidden, self.output_layer)]
        inputs = [z] if context is None else [z, context]
        return _relu_network(inputs, [tf.cast(w, z.dtype) for w in (*kernels, *biases)])

    def compute_output_shape(self, z_shape, context_shape=None):
        return (*z_shape[:-1], self.outputs)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "hidden_units": self.hidden_units,
            "activation": keras.activations.serialize(self.activation),
            "outputs": self.outputs,
        }


def by_backpropagation(
    function: Callable[[tf.Tensor], tf.Tensor], z: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """`function(z)`, `[batch]`, and its derivative for each example (None if it has none)."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(z)
        value = function(z)
    return value, tape.gradient(value, z)


def _relu_network(inputs: list[tf.Tensor], weights: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """`c(z)` and `dc/dz` of a ReLU network, and what phi learns from them in closed form.

    With `a_l = h_{l-1} W_l + b_l`, `h_l = relu(a_l)` and `delta_l = dc/d a_l`, a loss that has the
    derivatives `A` in `c` and `v` in `dc/dz` has the derivative

        d loss / d W_l = (A h_{l-1} + t_{l-1})^T delta_l,    t_0 = v, t_l = relu'(a_l) (t_{l-1} W_l)

    since `v . dc/dz` is the derivative of `c` along `v`, whose tangents `t_l` are linear in each
    W_l, and a ReLU has no curvature. So one forward, one backward and one tangent pass are all.
    Backpropagation through backpropagation, which knows none of this, takes one pass more, and
    twice as many products for the weights.

    Args:
        inputs: `z`, `[batch, n]`, and possibly the context, `[batch, m]`.
        weights: a kernel for each input, the kernels of the other layers, the biases of all.
    """

    @tf.custom_gradient
    def closed_form(*weights):
        depth = (len(weights) - len(inputs) + 1) // 2
        kernels, biases = weights[:-depth], weights[-depth:]
        first, others = kernels[: len(inputs)], kernels[len(inputs) :]

        a = [tf.add_n([h @ w for h, w in zip(inputs, first, strict=True)]) + biases[0]]
        for w, b in zip(others, biases[1:], strict=True):
            a.append(tf.nn.relu(a[-1]) @ w + b)
        *hidden, c = a

        deltas = [tf.ones_like(c)]
        for w, pre in zip(reversed(others), reversed(hidden), strict=True):
            deltas.insert(0, tf.where(pre > 0, deltas[0] @ tf.transpose(w), 0.0))
        dc_dz = deltas[0] @ tf.transpose(first[0])

        def gradient(credit, v):
            credit = credit[:, tf.newaxis]
            tangent = tf.where(hidden[0] > 0, v @ first[0], 0.0)
            of_kernels = [tf.transpose(credit * inputs[0] + v) @ deltas[0]]
            of_kernels += [tf.transpose(h) @ (credit * deltas[0]) for h in inputs[1:]]
            for k, w in enumerate(others):
                h = credit * tf.nn.relu(hidden[k]) + tangent
                of_kernels.append(tf.transpose(h) @ deltas[k + 1])
                if k + 1 < len(hidden):
                    tangent = tf.where(hidden[k + 1] > 0, tangent @ w, 0.0)
            of_biases = [tf.reduce_sum(credit * delta, 0) for delta in deltas]
            return [*of_kernels, *of_biases]

        return (tf.squeeze(c, -1), dc_dz), gradient

    return closed_form(*weights)


def build_network(network: keras.layers.Layer, **shapes: tuple[int | None, ...] | None) -> None:
    """Builds a network for the parts that `evaluate_network` will give it.

    A symbolic call builds any layer or model, also one without a `build` of its own.

    Args:
        network: the network.
        **shapes: of each part by name, `[batch, ...]`; None for a part that there is not.
    """
    sizes = []
    for name, shape in shapes.items():
        if shape is None:
            continue
        if None in shape[1:]:
            raise ValueError(
                "a control-variate network needs inputs of a fixed size: every axis but the batch "
                f"must be known. Received {name} of shape {tuple(shape)}"
            )
        sizes.append(_size(shape))
    if not isinstance(network, ControlVariate):
        sizes = [sum(sizes)]
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


def mark_control_variates(variables: Iterable[keras.Variable]) -> None:
    """Marks variables as `phi`: `RelaxOptimizer` reads it, paths change across save and load."""
    for variable in variables:
        setattr(variable, _MARK, True)


def is_control_variate(variable: keras.Variable) -> bool:
    """Whether a variable is part of an estimator rather than of the model."""
    return getattr(variable, _MARK, False)
