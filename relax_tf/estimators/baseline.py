"""What is known of a cost before its sample is drawn: past costs, and a regression on the context.

An estimate stays unbiased when something that does not depend on its sample is taken away from its
cost. `m` and `s`, the mean and the standard deviation of past batches, give a network a unit to
learn in; the network `B` foretells the cost from the context.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from relax_tf.control_variates import MLP, build_network, evaluate_network
from relax_tf.estimators.moving_moments import MovingMoments
from relax_tf.estimators.networks import checked_network, network_config
from relax_tf.validation import decay_rate


def built_baseline(
    network: keras.layers.Layer | None,
    context_shape: tuple[int | None, ...] | None,
    hidden_units: Sequence[int],
    dtype: keras.DTypePolicy,
) -> keras.layers.Layer | None:
    """`B` for contexts of this shape, by default an MLP; without a context as it was."""
    if context_shape is None:
        return network
    if network is None:
        network = MLP(hidden_units, dtype=dtype)
    build_network(network, context=context_shape)
    return network


def foretold(network: keras.layers.Layer, context: tf.Tensor | None, dtype: tf.DType) -> tf.Tensor:
    """`B(context)`, `[batch]`, of a network that was built for a context."""
    if context is None:
        raise ValueError(
            "the estimator learned a baseline on the context of earlier calls, but this call "
            "has context=None. Always pass a context, or never."
        )
    return evaluate_network(network, tf.cast(context, dtype))


class Baseline(keras.layers.Layer):
    """`m + s B(context)`, `[batch]`; without a context `m`.

    `B` starts at zero. `m` is 0 and `s` 1 before the first batch, and `s` is 1 wherever past
    costs did not differ.

    Args:
        network: `B`, any Keras layer or model, or None for an MLP.
        decay: in [0, 1), of the moving averages `m` and `s`: the weight of a batch relative to
            the next one.
        hidden_units: of the MLP.

    Raises:
        TypeError: if `network` is not a Keras layer or `decay` not a number.
        ValueError: if `decay` is not in [0, 1); when called without a context although it was
            built for one, or if the network's output is not `[batch, 1]` or `[batch]`.
    """

    def __init__(
        self,
        network: keras.layers.Layer | None,
        decay: float,
        hidden_units: Sequence[int],
        **kwargs,
    ):
        super().__init__(**kwargs)
        self._is_default = network is None
        self.network = checked_network(network, "baseline")
        self.hidden_units = hidden_units
        self.decay = decay_rate(decay, "decay")
        self.past = MovingMoments(self.decay, dtype=self.dtype_policy, name="past")
        self._sees_context = False

    def build(self, context_shape=None):
        self._sees_context = context_shape is not None
        self.network = built_baseline(
            self.network, context_shape, self.hidden_units, self.dtype_policy
        )
        self.built = True

    def scale(self, dtype: tf.DType) -> tf.Tensor:
        """`s`, a scalar."""
        deviation = self.past.standard_deviation()
        return tf.cast(tf.where(deviation > 0, deviation, 1), dtype)

    def value(self, context: tf.Tensor | None, dtype: tf.DType) -> tf.Tensor:
        """The baseline of each example, `[batch]`, a scalar without a context."""
        return tf.cast(self.past.mean(), dtype) + self.correction(context, dtype)

    def correction(self, context: tf.Tensor | None, dtype: tf.DType) -> tf.Tensor:
        """`s B(context)`, `[batch]`, without a context 0."""
        if not self._sees_context:
            return tf.zeros([], dtype)
        return self.scale(dtype) * foretold(self.network, context, dtype)

    def update(self, f_b: tf.Tensor) -> None:
        """Takes in the costs of a batch, once all estimates on it are made."""
        self.past.update(f_b)

    def arguments(self) -> dict[str, Any]:
        """For an estimator's configuration."""
        return {"baseline": network_config(self.network, self._is_default), "decay": self.decay}
