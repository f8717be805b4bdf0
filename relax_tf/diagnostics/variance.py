"""The variance of a model's gradient estimates over repeated draws at a frozen point."""

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from relax_tf.control_variates import is_control_variate
from relax_tf.keras_internals import all_layers, seed_generators
from relax_tf.step.hard_pass import as_batch
from relax_tf.step.trainer import RelaxTrainer
from relax_tf.validation import integer_of_at_least, positive_integer


class GradientVarianceResult(NamedTuple):
    """Variances over draws.

    Attributes:
        layers: for each call of a stochastic layer, the batch mean of the variance of the
            estimate at theta, summed over the event.
        weights: for each trainable variable of the model (not of the control variates), by path,
            the variance of its gradient, summed over its elements.
    """

    layers: dict[str, float]
    weights: dict[str, float]


def gradient_variance(
    model: RelaxTrainer, x: Any, y: Any = None, num_draws: int = 100
) -> GradientVarianceResult:
    """Measures the variance of the gradient estimates of a RelaxModel on one batch.

    No weight, moving average or counter moves; the layers' generators do, like in
    `RelaxModel.estimate`.

    Args:
        model: a RelaxModel.
        x, y: one batch.
        num_draws: number of estimates, at least 2.

    Raises:
        TypeError: if `model` is not a RelaxModel.
        ValueError: if `num_draws` is below 2.

    Example:

    >>> inputs = keras.Input([2])
    >>> outputs = relax_tf.StochasticBinaryLayer(3, "rebar", name="b")(inputs)
    >>> model = relax_tf.RelaxModel(inputs, outputs)
    >>> model.compile(loss="mse")
    >>> result = relax_tf.diagnostics.gradient_variance(model, tf.ones([4, 2]), tf.ones([4, 3]))
    >>> sorted(result.weights)
    ['b/theta/bias', 'b/theta/kernel']
    """
    if not isinstance(model, RelaxTrainer):
        raise TypeError(f"`model` must be a relax_tf.RelaxModel. Received: {model!r}")
    num_draws = integer_of_at_least(2, num_draws, "num_draws")
    x, y, _ = as_batch(x, y)

    @tf.function(autograph=False)
    def draw():
        # Moving averages and counters; generators move on.
        generators = [g for layer in all_layers(model) for g in seed_generators(layer)]
        seeds = {id(generator.state) for generator in generators}
        kept = [v for v in model.non_trainable_variables if id(v) not in seeds]
        before = [tf.identity(v.value) for v in kept]
        with tf.GradientTape() as tape:
            result = model.estimate(x, y)
        for variable, value in zip(kept, before, strict=True):
            variable.assign(value)
        weights = [v for v in model.trainable_variables if not is_control_variate(v)]
        gradients = tape.gradient(
            result.surrogate, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        layers = {name: estimate.gradient for name, estimate in result.estimates.items()}
        return layers, {v.path: g for v, g in zip(weights, gradients, strict=True)}

    mean, square = None, None
    for count in range(1, num_draws + 1):
        # Welford's recursion, on the structure of all gradients.
        values = tf.nest.map_structure(lambda g: g.numpy().astype(np.float64), draw())
        if mean is None:
            mean = tf.nest.map_structure(np.zeros_like, values)
            square = mean
        update = tf.nest.map_structure(lambda v, m, n=count: m + (v - m) / n, values, mean)
        square = tf.nest.map_structure(
            lambda s, v, old, new: s + (v - old) * (v - new), square, values, mean, update
        )
        mean = update
    variance = tf.nest.map_structure(lambda s: s / (num_draws - 1), square)
    layers, weights = variance
    return GradientVarianceResult(
        layers={
            name: float(sum(leaf.sum() / len(leaf) for leaf in tf.nest.flatten(value)))
            for name, value in layers.items()
        },
        weights={path: float(value.sum()) for path, value in weights.items()},
    )


class GradientVariance(keras.callbacks.Callback):
    """Logs the log-variance of the gradient estimates on a fixed batch after every epoch.

    Adds `NAME_log_variance` to the logs for each call of a stochastic layer; put it before the
    callbacks that read the logs (`CSVLogger`, `TensorBoard`).

    Args:
        x, y: the batch.
        num_draws: see `gradient_variance`.
        every: measures every so many epochs.

    Example:

    >>> callback = relax_tf.diagnostics.GradientVariance(tf.ones([4, 2]), tf.ones([4, 3]))
    """

    def __init__(self, x: Any, y: Any = None, num_draws: int = 100, every: int = 1):
        super().__init__()
        self.x, self.y = x, y
        self.num_draws = integer_of_at_least(2, num_draws, "num_draws")
        self.every = positive_integer(every, "every")

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every or logs is None:
            return
        result = gradient_variance(self.model, self.x, self.y, self.num_draws)
        for name, variance in result.layers.items():
            logs[f"{name}_log_variance"] = float(np.log(variance))
