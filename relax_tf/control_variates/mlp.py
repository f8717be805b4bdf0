"""The paper's network, with its derivatives in closed form; on feature maps a local one."""

import contextlib
import contextvars
import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from relax_tf.control_variates.local import LocalMLP, map_positions
from relax_tf.control_variates.network import ControlVariate
from relax_tf.holding import holding
from relax_tf.keras_internals import untrack
from relax_tf.validation import boolean, positive_integer, positive_integers

_UNITS, _LOCAL_UNITS = (200, 200), (32, 32)
_may_be_local = contextvars.ContextVar("may_be_local", default=True)


def default_networks(local: bool) -> contextlib.AbstractContextManager:
    """While active, networks that are built with `local=None` may be local, or may not."""
    return holding(_may_be_local, local)


@keras.saving.register_keras_serializable("relax_tf")
class MLP(ControlVariate):
    """The paper's control variate: a ReLU network from `z` and the context to one number.

    Its last layer starts at zero, so that a control variate starts out as none at all: `relax`
    as REINFORCE and `relaxed_rebar` as REBAR.

    On feature maps (samples `[batch, height, width, channels]`) it would grow with the size of the
    map times its width, 26 million weights for 32x32x64 samples. There it is a small network that
    all positions share: each sees its own features of z and of a context with the same positions,
    and their means over the map, and c(z) is the sum of what the positions make of it.

    Args:
        hidden_units: the widths of the hidden layers, at least one; None for (200, 200), and for
            (32, 32) where it is local.
        activation: their activation; it must have a useful gradient, since `dc/dz` is used.
        outputs: how many numbers: 1, unless the network gives slopes (`relaxed_disarm`).
        local: whether one network is shared by all positions, `[batch, ..., features]`; None if
            there are two axes of positions or more. Of categorical variables,
            `[batch, ..., variables, classes]`, the positions are those of the context.
        dtype: of computation and weights.

    Raises:
        TypeError, ValueError: if `hidden_units` is not a sequence of positive integers; when
            it is built with local=True for samples without positions.

    Example:

    >>> network = relax_tf.control_variates.MLP([16])
    >>> network(tf.zeros([2, 5]), tf.ones([2, 3])).shape
    TensorShape([2, 1])
    """

    def __init__(
        self,
        hidden_units: Sequence[int] | None = None,
        activation: Any = "relu",
        outputs: int = 1,
        local: bool | None = None,
        dtype: Any = "float32",
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)
        self.outputs = positive_integer(outputs, "outputs")
        if hidden_units is not None:
            hidden_units = positive_integers(hidden_units, "hidden_units")
        self.hidden_units = hidden_units
        self.activation = keras.activations.get(activation)
        self.local = local if local is None else boolean(local, "local")
        self.local_network, self.of_z, self.of_context = None, None, None
        self.hidden = [self._dense(units) for units in (hidden_units or _UNITS)[1:]]
        self.output_layer = self._dense(self.outputs, kernel_initializer="zeros")

    def _dense(self, units: int, **kwargs) -> keras.layers.Dense:
        arguments = {"kernel_initializer": "he_normal", "dtype": self.dtype_policy, **kwargs}
        return keras.layers.Dense(units, **arguments)

    def _positions(self) -> tuple[int, ...] | None:
        """The axes of positions that share a network, or None."""
        if self.local is None and not _may_be_local.get():
            return None
        if self.local is False or not (self.shapes or self.local):
            return None
        positions = self.shapes and map_positions(self.shapes, 1 if self.local else 2)
        whole = positions and self.outputs > 1 and self.outputs % math.prod(positions)
        if self.local and (not positions or whole):
            raise ValueError(
                f"the network {self.name!r} is local=True, so samples must have axes of positions, "
                f"[batch, ..., features], and `outputs` be 1 or a multiple of their number. "
                f"Received shapes: {[*self.shapes]}, outputs={self.outputs}"
            )
        return None if whole else positions

    def build(self, z_shape, context_shape=None):
        self._sizes = (z_shape[-1], None if context_shape is None else context_shape[-1])
        if positions := self._positions():
            units = self.hidden_units or _LOCAL_UNITS
            arguments = (self.shapes, positions, units, self.activation, self.outputs)
            self.local_network = LocalMLP(*arguments, dtype=self.dtype_policy)
            for dense in (*self.hidden, self.output_layer):
                untrack(self, dense)
            self.hidden, self.output_layer = [], None
            return
        first_units, *_ = units = self.hidden_units or _UNITS
        # The first layer, `[z, context] W`, is the sum of two, initialised as one (He).
        parts = [shape[-1] for shape in (z_shape, context_shape) if shape is not None]
        variances = [2.0 * part / max(sum(parts), 1) for part in parts]
        first, *_ = he = [keras.initializers.VarianceScaling(v or 1.0) for v in variances]
        self.of_z = self._dense(first_units, kernel_initializer=first)
        self.of_z.build((None, parts[0]))
        if context_shape is not None:
            self.of_context = self._dense(first_units, kernel_initializer=he[1], use_bias=False)
            self.of_context.build((None, parts[1]))
        for dense, size in zip([*self.hidden, self.output_layer], units, strict=True):
            dense.build((None, size))

    def _check_inputs(self, z, context) -> None:
        for name, built, part in zip(("z", "context"), self._sizes, (z, context), strict=True):
            given = None if part is None else part.shape[-1]
            if built != given:
                known = f"for a `{name}` of {built} numbers an example"
                raise ValueError(
                    f"the network {self.name!r} was built "
                    f"{f'without a `{name}`' if built is None else known}. Received: {given}"
                )

    def call(self, z, context=None):
        self._check_inputs(z, context)
        if self.local_network is not None:
            return self.local_network(*[part for part in (z, context) if part is not None])
        h = self.of_z(z)
        if context is not None:
            h += self.of_context(context)
        for dense in self.hidden:
            h = dense(self.activation(h))
        return self.output_layer(self.activation(h))

    def value_and_derivative(self, z, context=None):
        not_relu = self.activation is not keras.activations.relu
        if not_relu or self.outputs != 1 or self.local_network is not None:
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
            "local": self.local,
        }

    @classmethod
    def from_config(cls, config):
        # Files of earlier versions do not say: then all networks saw everything.
        return cls(**{"local": False, **config})

    def get_build_config(self):
        config = super().get_build_config()
        return config and {**config, "shapes": self.shapes}

    def build_from_config(self, config):
        self.shapes = [tuple(shape) for shape in config.get("shapes", [])]
        super().build_from_config({k: v for k, v in config.items() if k != "shapes"})


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
