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
from relax_tf.estimators.base import Estimator
from relax_tf.estimators.moving_moments import MovingMoments
from relax_tf.validation import decay_rate


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
        if not isinstance(network, (keras.layers.Layer, type(None))):
            raise TypeError(
                "`baseline` must be a Keras layer or model. Received: "
                f"{network!r} (of type {type(network).__name__})"
            )
        self._is_default = network is None
        self.network = network
        self.hidden_units = hidden_units
        self.decay = decay_rate(decay, "decay")
        self.past = MovingMoments(self.decay, dtype=self.dtype_policy, name="past")
        self._sees_context = False

    def build(self, context_shape=None):
        self._sees_context = context_shape is not None
        if self._sees_context:
            if self.network is None:
                self.network = MLP(self.hidden_units, dtype=self.dtype_policy)
            build_network(self.network, context=context_shape)
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
        if context is None:
            raise ValueError(
                "the estimator learned a baseline on the context of earlier calls, but this call "
                "has context=None. Always pass a context, or never."
            )
        return self.scale(dtype) * evaluate_network(self.network, tf.cast(context, dtype))

    def update(self, f_b: tf.Tensor) -> None:
        """Takes in the costs of a batch, once all estimates on it are made."""
        self.past.update(f_b)

    def arguments(self) -> dict[str, Any]:
        """For an estimator's configuration."""
        network = None if self._is_default else keras.saving.serialize_keras_object(self.network)
        return {"baseline": network, "decay": self.decay}

    @staticmethod
    def deserialized_arguments(config: dict[str, Any]) -> dict[str, Any]:
        """An estimator's configuration with the network in place of its own configuration."""
        network = config.get("baseline")
        if not isinstance(network, dict):
            return config
        return {**config, "baseline": keras.saving.deserialize_keras_object(network)}


class BaselineEstimator(Estimator):
    """Base of the estimators that have a `Baseline`: its life beside theirs, not how it is used.

    Attributes:
        baseline_units: the widths of the baseline's default network.
    """

    baseline_units = (64,)

    def __init__(self, baseline: keras.layers.Layer | None = None, decay: float = 0.99, **kwargs):
        super().__init__(**kwargs)
        self.baseline = Baseline(
            baseline, decay, self.baseline_units, dtype=self.dtype_policy, name="baseline"
        )

    def build(self, theta_shape, context_shape=None):
        self.baseline.build(context_shape)
        super().build(theta_shape, context_shape)

    def observe(self, f_b, context):
        self.baseline.update(f_b)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.baseline.arguments()}

    @classmethod
    def from_config(cls, config):
        return super().from_config(Baseline.deserialized_arguments(config))
