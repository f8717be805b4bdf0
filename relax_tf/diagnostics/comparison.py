"""Several estimators side by side, on one model and one batch."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from relax_tf.control_variates import is_control_variate
from relax_tf.diagnostics.variance import gradient_variance
from relax_tf.models import RelaxTrainer
from relax_tf.validation import function, positive_integer


class Comparison(NamedTuple):
    """What `compare` measured.

    Attributes:
        variances: for each estimator the variance at theta of each stochastic layer.
    """

    variances: dict[str, dict[str, float]]

    def __str__(self) -> str:
        layers = list(next(iter(self.variances.values())))
        lines = ["estimator".ljust(28) + "".join(f"log Var {name}".rjust(24) for name in layers)]
        for estimator, by_layer in self.variances.items():
            values = (f"{np.log(by_layer[name]):.2f}".rjust(24) for name in layers)
            lines.append(estimator.ljust(28) + "".join(values))
        return "\n".join(lines)

    def plot(self, path: str) -> None:
        """Draws the table as bars and saves them to `path` (needs matplotlib)."""
        import matplotlib.pyplot as plt

        layers = list(next(iter(self.variances.values())))
        figure, axis = plt.subplots(
            figsize=(6, 0.4 * len(self.variances) * len(layers) + 1), layout="constrained"
        )
        height = 0.8 / len(layers)
        for k, layer in enumerate(layers):
            logs = [np.log(by_layer[layer]) for by_layer in self.variances.values()]
            axis.barh(np.arange(len(logs)) + k * height, logs, height, label=layer)
        axis.set_yticks(np.arange(len(self.variances)), list(self.variances))
        axis.set(xlabel="log variance of the gradient estimate")
        axis.invert_yaxis()
        axis.legend()
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
) -> Comparison:
    """Measures the gradient variance of several estimators on one model and batch.

    Args:
        build_model: from an estimator's id to a compiled RelaxModel.
        estimators: the ids.
        x, y: the batch.
        num_draws: see `gradient_variance`.
        like: a model whose weights (all but the control variates') each model takes over; by
            default the first that was built.
        adapt_steps: steps in which only the control variates learn, before the measurement.

    Returns:
        A `Comparison`: print it, or `plot` it.

    Raises:
        TypeError: if `build_model` is no function, or does not return RelaxModels, or if
            `estimators` is not a list of ids.
        ValueError: if that list is empty, or a number is out of its range.

    Example:

    >>> def build(estimator):
    ...     inputs = keras.Input([2])
    ...     outputs = relax_tf.StochasticBinaryLayer(3, estimator, name="b")(inputs)
    ...     model = relax_tf.RelaxModel(inputs, outputs)
    ...     model.compile("adam", loss="mse")
    ...     return model
    >>> x, y = tf.ones([4, 2]), tf.ones([4, 3])
    >>> result = relax_tf.diagnostics.compare(build, ["reinforce", "rebar"], x, y)
    >>> sorted(result.variances)
    ['rebar', 'reinforce']
    """
    function(build_model, "build_model")
    estimators = _checked_ids(estimators)
    if adapt_steps != 0:
        adapt_steps = positive_integer(adapt_steps, "adapt_steps")
    variances = {}
    for estimator in estimators:
        model = build_model(estimator)
        like = model if like is None else like
        for value, name in ((model, "build_model(estimator)"), (like, "like")):
            if not isinstance(value, RelaxTrainer):
                raise TypeError(f"`{name}` must be a relax_tf.RelaxModel. Received: {value!r}")
        for variable, value in zip(_weights(model), _weights(like), strict=True):
            variable.assign(value)
        for _ in range(adapt_steps):
            _adapt(model, x, y)
        variances[estimator] = gradient_variance(model, x, y, num_draws).layers
    return Comparison(variances)


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


def _adapt(model: RelaxTrainer, x: Any, y: Any) -> None:
    """One training step, after which the model's own weights are put back."""
    before = [variable.numpy() for variable in _weights(model)]
    model.train_on_batch(x, y)
    for variable, value in zip(_weights(model), before, strict=True):
        variable.assign(value)
