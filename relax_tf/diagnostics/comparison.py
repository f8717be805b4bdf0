"""Several estimators side by side, on one model and one batch."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from relax_tf.control_variates import is_control_variate
from relax_tf.diagnostics.variance import gradient_variance
from relax_tf.step.hard_pass import as_batch
from relax_tf.step.trainer import RelaxTrainer
from relax_tf.validation import function, positive_integer


class Comparison(NamedTuple):
    """What `compare` measured.

    Attributes:
        variances: for each estimator the variance at theta of each stochastic layer.
        evaluations: for each estimator how often one estimate evaluates the cost of an example.
    """

    variances: dict[str, dict[str, float]]
    evaluations: dict[str, int]

    @property
    def layers(self) -> list[str]:
        return list(next(iter(self.variances.values())))

    def at_equal_evaluations(self, estimator: str, layer: str) -> float:
        """The variance that one evaluation buys: of an average over estimates, times their cost.

        With a budget of N evaluations the mean of `N / evaluations` estimates has this variance
        over N.
        """
        return self.variances[estimator][layer] * self.evaluations[estimator]

    def __str__(self) -> str:
        head = "".join(
            f"log Var {name}".rjust(24) + "per evaluation".rjust(16) for name in self.layers
        )
        lines = ["estimator".ljust(28) + "evaluations".rjust(12) + head]
        for estimator, by_layer in self.variances.items():
            values = "".join(
                f"{np.log(by_layer[name]):.2f}".rjust(24)
                + f"{np.log(self.at_equal_evaluations(estimator, name)):.2f}".rjust(16)
                for name in self.layers
            )
            lines.append(estimator.ljust(28) + f"{self.evaluations[estimator]}".rjust(12) + values)
        return "\n".join(lines)

    def plot(self, path: str) -> None:
        """Draws the table as bars and saves them to `path` (needs matplotlib)."""
        import matplotlib.pyplot as plt

        figure, axis = plt.subplots(
            figsize=(7, 0.4 * len(self.variances) * len(self.layers) + 1), layout="constrained"
        )
        height = 0.8 / len(self.layers)
        places = np.arange(len(self.variances))
        for k, layer in enumerate(self.layers):
            logs = [np.log(by_layer[layer]) for by_layer in self.variances.values()]
            equal = [np.log(self.at_equal_evaluations(name, layer)) for name in self.variances]
            axis.barh(places + k * height, logs, height, label=f"{layer}: one estimate")
            axis.plot(equal, places + k * height, "k|", ms=12)
        axis.plot([], [], "k|", label="one evaluation")
        axis.set_yticks(places, [f"{name} ({count})" for name, count in self.evaluations.items()])
        axis.set(xlabel="log variance of the gradient estimate (evaluations of the cost)")
        axis.invert_yaxis()
        axis.legend(fontsize=8)
        figure.savefig(path, dpi=120)
        plt.close(figure)


def compare(
    build_model: Callable[[str], RelaxTrainer],
    estimators: Iterable[str],
    x: Any,
    y: Any = None,
    num_draws: int = 100,
    like: RelaxTrainer | None = None,
    adapt_steps: int = 0,
    adapt_data: Iterable[tuple[Any, Any]] | None = None,
) -> Comparison:
    """Measures the gradient variance of several estimators on one model and batch.

    Args:
        build_model: from an estimator's id (or any name that you give it) to a compiled
            RelaxModel.
        estimators: the ids.
        x, y: the batch.
        num_draws: see `gradient_variance`.
        like: a model whose weights (all but the control variates') each model takes over; by
            default the first that was built.
        adapt_steps: steps in which only the control variates learn, with the model's
            `control_variate_optimizer`, before the measurement.
        adapt_data: an iterable of `(x, y)` to adapt on, started anew for each estimator, at least
            `adapt_steps` long. By default the batch itself, again and again: a control variate
            that sees the context then learns that batch by heart.

    Returns:
        A `Comparison`: print it, or `plot` it.

    Raises:
        TypeError: if `build_model` is no function, or does not return RelaxModels, or if
            `estimators` is not a list of ids.
        ValueError: if that list is empty, a number is out of its range, or `adapt_data` ends
            before `adapt_steps`.

    Example:

    >>> def build(estimator):
    ...     inputs = keras.Input([2])
    ...     outputs = relax_tf.StochasticBinaryLayer(3, estimator, name="b")(inputs)
    ...     model = relax_tf.RelaxModel(inputs, outputs)
    ...     model.compile("adam", loss="mse")
    ...     return model
    >>> x, y = tf.ones([4, 2]), tf.ones([4, 3])
    >>> result = relax_tf.diagnostics.compare(build, ["reinforce", "rebar"], x, y)
    >>> result.evaluations
    {'reinforce': 1, 'rebar': 2}
    """
    function(build_model, "build_model")
    estimators = _checked_ids(estimators)
    if adapt_steps != 0:
        positive_integer(adapt_steps, "adapt_steps")
    x, y, _ = as_batch(x, y)
    variances, evaluations = {}, {}
    for estimator in estimators:
        model = build_model(estimator)
        like = model if like is None else like
        for value, name in ((model, "build_model(estimator)"), (like, "like")):
            if not isinstance(value, RelaxTrainer):
                raise TypeError(f"`{name}` must be a relax_tf.RelaxModel. Received: {value!r}")
        _take_over(model, like)
        _adapt(model, itertools.repeat((x, y)) if adapt_data is None else adapt_data, adapt_steps)
        _take_over(model, like)  # moving statistics have moved
        layers = gradient_variance(model, x, y, num_draws).layers
        variances[estimator], evaluations[estimator] = layers, _evaluations(model, list(layers))
    return Comparison(variances, evaluations)


def _take_over(model: RelaxTrainer, like: RelaxTrainer) -> None:
    if model is not like:
        for variable, value in zip(_weights(model), _weights(like), strict=True):
            variable.assign(value)


def _checked_ids(estimators: Any) -> list[str]:
    """The ids, of which there is at least one."""
    if isinstance(estimators, str) or not isinstance(estimators, Iterable):
        raise TypeError(
            "`estimators` must be several ids, such as ['reinforce', 'relax']. "
            f"Received: {estimators!r} (of type {type(estimators).__name__})"
        )
    ids = list(estimators)
    if not ids:
        raise ValueError("`estimators` must hold at least one id. Received: none")
    return ids


def _weights(model: RelaxTrainer) -> list:
    return [variable for variable in model.weights if not is_control_variate(variable)]


def _adapt(model: RelaxTrainer, data: Iterable[tuple[Any, Any]], steps: int) -> None:
    """Training steps of the control variates alone."""
    data = iter(data)
    phi = [variable for variable in model.trainable_variables if is_control_variate(variable)]
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    model.optimizer.build(model.trainable_variables)

    @tf.function(jit_compile=model.jit_compile is True)
    def step(x, y):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in phi])
            loss = model.estimate(x, y).control_variate_loss
        if phi:
            optimizer.control_variate_optimizer.apply(tape.gradient(loss, phi), phi)

    if not any(layer.estimator.variables for layer in model._stochastic_layers()):
        return  # not even a moving average
    for taken in range(steps):
        x, y = next(data, (None, None))
        if x is None:
            raise ValueError(f"`adapt_data` ended after {taken} of {steps} steps of adaptation.")
        step(x, y)


def _evaluations(model: RelaxTrainer, calls: list[str]) -> int:
    """How often one step evaluates the cost: once for all calls, and what each wants besides."""
    layers = {layer.name: layer for layer in model._stochastic_layers()}
    names = [name if name in layers else name.rpartition(":")[0] for name in calls]
    estimators = [layers[name].estimator for name in names]
    counts = [estimator.evaluations for estimator in estimators]
    if any(estimator.joint for estimator in estimators):
        return max(counts)
    return 1 + sum(count - 1 for count in counts)
