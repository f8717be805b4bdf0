"""Theta: `x W + beta`, or the inputs themselves."""

from typing import Any

import keras
import tensorflow as tf

from relax_tf.distributions import Distribution
from relax_tf.validation import refuse_sparse

# The settings of `x W + beta`, with their defaults.
_OF_DENSE = {
    "use_bias": True,
    "kernel_initializer": "glorot_uniform",
    "bias_initializer": "zeros",
    "kernel_regularizer": None,
    "bias_regularizer": None,
}


class ThetaLayer(keras.layers.Layer):
    """What a stochastic layer makes of its inputs before it draws.

    Attributes:
        dense: computes `x W + beta`; None where the inputs are theta.
        unit_rank: how many of the last axes of a sample make one unit or array of units; axes
            in front of them repeat it.
        theta_shape: of inputs that are theta, for messages.
    """

    dense: keras.layers.Dense | None
    unit_rank = 1
    theta_shape = "[batch, ..., units]"

    def _make_dense(self, num_outputs: int | None, **settings: Any) -> None:
        """The last thing in a constructor: the order in which layers are made is that in files."""
        if num_outputs is None:
            self._refuse_settings_of_dense(settings)
            self.dense = None
        else:
            self.dense = keras.layers.Dense(
                num_outputs,
                **settings,
                dtype=self.dtype_policy,
                trainable=self.trainable,
                name="theta",
            )
            self.input_spec = keras.InputSpec(min_ndim=2)

    def _build_dense(self, inputs_shape: tuple[int | None, ...]) -> None:
        if not self.dense.built:  # `for_inference` shares one
            self.dense.build(inputs_shape)
        self.input_spec = keras.InputSpec(min_ndim=2, axes={-1: inputs_shape[-1]})

    def compute_output_shape(self, inputs_shape=None, **shapes):
        # `summary()` calls the shapes as `build` does, of a subclass too; the first is the inputs'.
        first = next(iter(shapes.values()), None) if inputs_shape is None else inputs_shape
        return self._sample_shape(first)

    def _sample_shape(self, inputs_shape: Any) -> tuple[int | None, ...]:
        """Of inputs of this shape, or of several."""
        raise NotImplementedError

    def _refuse_settings_of_dense(self, settings: dict[str, Any]) -> None:
        for name, value in settings.items():
            if value != _OF_DENSE[name]:
                raise ValueError(
                    f"layer {self.name!r} has no kernel and no bias, because its inputs are theta: "
                    f"`{name}` belongs to the layer that computes them. Received: {name}={value!r}"
                )

    @property
    def kernel(self) -> keras.Variable | None:
        """W, shape `[features, num_outputs]`; None where the inputs are theta."""
        return None if self.dense is None else self.dense.kernel

    @property
    def bias(self) -> keras.Variable | None:
        """beta, shape `[num_outputs]`; None without one."""
        return None if self.dense is None else self.dense.bias

    def theta(self, inputs: Any) -> Any:
        """`x W + beta`; or the inputs where they are theta, in float32 at least."""
        if self.dense is not None:
            return self.dense(inputs)
        dtype = "float64" if self.compute_dtype == "float64" else "float32"
        return keras.tree.map_structure(
            lambda t: tf.cast(t, dtype) if tf.as_dtype(t.dtype).is_floating else t, inputs
        )

    def _default_context(self, inputs: Any, dist: Distribution) -> tf.Tensor:
        """What the control variate sees if it is shown nothing else: the inputs.

        Of inputs that are theta those that are finite, side by side if they are several.
        """
        if self.dense is not None:
            return inputs
        return tf.concat([dist.zero_where_fixed(t) for t in tf.nest.flatten(dist.theta)], -1)

    def _check_theta_shape(self, inputs_shape: Any, shape: tuple[int | None, ...]) -> None:
        units = shape[-self.unit_rank :]
        if len(shape) <= len(units) or None in units:
            lacks = self.unit_rank == 2 and len(shape) == 2 and shape[-1]
            remedy = f". Of one variable: keras.layers.Reshape([1, {shape[-1]}])." if lacks else ""
            raise ValueError(
                f"layer {self.name!r} has no kernel: its inputs are theta, and must have shape "
                f"{self.theta_shape} with known {self.theta_shape.split('..., ')[1][:-1]}. "
                f"Received shape: {inputs_shape}{remedy}"
            )
        axes = {-axis: size for axis, size in enumerate(reversed(units), start=1)}
        spec = keras.InputSpec(min_ndim=len(units) + 1, axes=axes)
        self.input_spec = [spec] * len(inputs_shape) if is_nested(inputs_shape) else spec

    def _refuse_sparse(self, inputs: Any, context: Any) -> None:
        for value in keras.tree.flatten(inputs):
            refuse_sparse(value, f"the input of layer {self.name!r}")
        refuse_sparse(context, f"the context of layer {self.name!r}")

    def set_weights(self, weights: list[Any]) -> None:
        """As in any Keras layer; or `[kernel, bias]` alone, `get_weights()` of a `Dense`.

        Args:
            weights: arrays, for all weights of the layer or for W and beta.
        """
        of_dense = [] if self.dense is None else self.dense.weights
        only_dense = 0 < len(weights) == len(of_dense) < len(self.weights)
        (self.dense if only_dense else super()).set_weights(weights)

    def get_config(self) -> dict[str, Any]:
        dense = {} if self.dense is None else self.dense.get_config()
        of_dense = {key: dense[key] for key in _OF_DENSE if key in dense}
        return {**super().get_config(), **of_dense}


def is_nested(shape: Any) -> bool:
    """Whether it is the shapes of a list of inputs; files have lists for tuples."""
    return isinstance(shape[0], list | tuple)
