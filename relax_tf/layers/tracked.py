"""The training metrics of one stochastic layer."""

import keras
import tensorflow as tf


class Tracked:
    """The training metrics of one layer, out of Keras's sight.

    Only a RelaxModel updates and shows them. Were they attributes of the layer, every Keras model
    that holds the layer would log zeros.
    """

    def __init__(self, layer_name: str):
        self._layer_name = layer_name
        self.metrics: dict[str, keras.metrics.Mean] = {}
        self.add("second_moment")

    def add(self, name: str) -> None:
        if name not in self.metrics:
            self.metrics[name] = keras.metrics.Mean(name=f"{self._layer_name}_{name}")

    def update(
        self, values: dict[str, tf.Tensor], examples: tf.Tensor, learned: tf.Tensor | None = None
    ) -> None:
        """Takes in a step's values; the norm only if the control variate `learned` (None: yes)."""
        for name in values.keys() & self.metrics.keys():
            metric = self.metrics[name]
            weight = tf.cast(examples, metric.dtype)
            if learned is not None and name == "control_variate_norm":
                weight *= tf.cast(learned, metric.dtype)
            metric.update_state(values[name], sample_weight=weight)
