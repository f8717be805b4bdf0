"""What relax_tf uses of Keras beside its public interface, each with the reason.

No other file knows a private name of Keras. `tests/keras_internals_test.py` calls all of these, so
that a release of Keras that changes one is told by name.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import global_state

# How models are made.

_x = keras.Input([1], name="x")  # named, so that users' models keep Keras's first automatic names
# The class of functional models, which has no public name.
Functional = type(keras.Model(_x, _x, name="functional_twin"))

# The training half of `keras.Model`: what a model built from inputs and outputs must initialise
# before `Functional` does the rest, as `keras.Model.__new__` and `__init__` do it.
Trainer = keras.Model.__bases__[0]


def replace_base(cls: type, base: type, twin: type) -> None:
    """Puts `twin` in the place of `base` among the bases of a class, through all in between.

    What `keras.Model.__init__` does to a user's subclass that passes it inputs and outputs.
    """
    cls.__bases__ = tuple(twin if parent is base else parent for parent in cls.__bases__)
    for parent in cls.__bases__:
        if issubclass(parent, base) and parent is not twin:
            replace_base(parent, base, twin)


def unpickler(model_class: type[keras.Model]) -> Callable:
    """What pickle is to call with what `keras.Model.__reduce__` saved.

    That names the class by itself, which for a class without a name in its module fails.
    """
    return model_class._unpickle_model


# What is inside a layer.


def all_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """A layer and all layers inside it, at any depth; `keras.Model.layers` has the outermost."""
    return layer._flatten_layers()


def inner_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers directly inside any layer; only models have a public list of theirs."""
    return layer._flatten_layers(include_self=False, recursive=False)


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The variables that a layer itself has; `weights` lists those of its inner layers too."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def seed_generators(layer: keras.layers.Layer) -> list[keras.random.SeedGenerator]:
    """A layer's own generators: Keras saves no state of theirs, and lists them nowhere."""
    return layer._seed_generators


def untrack(layer: keras.layers.Layer, inner: keras.layers.Layer) -> None:
    """Makes a layer forget one of its layers: Keras keeps what an attribute held before."""
    layer._tracker.untrack(inner)


def nodes(model: keras.Model) -> list[Any]:
    """The calls in a functional model's graph, inputs first, with `operation` and `parent_nodes`.

    `keras.Model.layers` does not say what was called on what.
    """
    depths = sorted(model._nodes_by_depth, reverse=True)
    return [node for depth in depths for node in model._nodes_by_depth[depth]]


# Masks, which travel with tensors.


def mask_of(tensor: Any) -> Any:
    """The mask that Keras attached to a tensor, or None; layers with several inputs get none."""
    return getattr(tensor, "_keras_mask", None)


def attach_mask(tensor: tf.Tensor, mask: tf.Tensor) -> None:
    """Attaches a mask, as a layer does to its output, to what no layer returned."""
    tensor._keras_mask = mask


# Compiled losses. `keras.Model.compute_loss` reduces them to one scalar.


def compile_loss(model: keras.Model) -> Any:
    """The `CompileLoss` of a model: its losses, resolved and weighted; None if it has none."""
    return model._compile_loss


def flat_losses(compiled: Any) -> list[Any]:
    """The losses of a built `CompileLoss` in the outputs' order, with `loss`, `loss_weights`."""
    return compiled._flat_losses


@contextlib.contextmanager
def replaced_losses(compiled: Any, replace: Callable[[Any], Callable]) -> Iterator[None]:
    """Meanwhile each loss is `replace(loss)`, and no loss is tracked in a metric.

    The structure of outputs and targets and the weights are Keras's to resolve, the losses ours.
    """
    losses, metrics = compiled._flat_losses, compiled._metrics
    compiled._flat_losses = [item._replace(loss=replace(item.loss)) for item in losses]
    compiled._metrics = [None] * len(losses)
    try:
        yield
    finally:
        compiled._flat_losses, compiled._metrics = losses, metrics


# Logs.


def loss_tracker(model: keras.Model) -> keras.metrics.Mean:
    """The metric `loss`, which a `train_step` of one's own has to update."""
    return model._loss_tracker


def compile_metrics(model: keras.Model) -> Any:
    """The compiled metrics, which Keras makes in the first step; None if there are none."""
    return model._compile_metrics


class TrainerHooks:
    """Two questions that Keras's trainer asks a model about its logs, under names we can tell."""

    def _logs_without_names(self, logs: dict[str, Any]) -> dict[str, Any]:
        """Of these logs those that `evaluate` and `*_on_batch` return without `return_dict`."""
        return logs

    def _logs_of_epoch(self, logs: dict[str, Any]) -> dict[str, Any]:
        """What Keras shows at the end of an epoch, given the logs of its last step."""
        return super()._get_metrics_result_or_logs(logs)

    def _flatten_metrics_in_order(self, logs):
        return super()._flatten_metrics_in_order(self._logs_without_names(logs))

    def _get_metrics_result_or_logs(self, logs):
        return self._logs_of_epoch(logs)


def current_call() -> Any:
    """The context of the outermost layer call in progress, or None.

    Layers of one seed that are called in one `model(x)` tell each other apart by it.
    """
    return global_state.get_global_attribute("current_call_ctx")


# Optimizers.


def variables_of(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """What an optimizer was built for, in order; `variables` are its own."""
    return optimizer._trainable_variables


@contextlib.contextmanager
def schedule_replaced(optimizer: keras.optimizers.Optimizer, rate: float) -> Iterator[Any]:
    """Meanwhile an optimizer has this rate in place of a schedule or a function, which it yields.

    None if it has neither. `learning_rate` is the number of today, and `get_config` fails for
    schedules that have none.
    """
    own = optimizer._learning_rate
    if not callable(own):
        yield None
        return
    try:
        optimizer._learning_rate = rate
        yield own
    finally:
        optimizer._learning_rate = own


def copy_exclusions(source: keras.optimizers.Optimizer, target: keras.optimizers.Optimizer) -> None:
    """What `exclude_from_weight_decay` was told holds for both: no configuration has it."""
    for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern"):
        if hasattr(source, name):
            setattr(target, name, getattr(source, name))


def refuse_unknown(optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable]) -> None:
    """Raises Keras's ValueError for a variable that the optimizer was not built for."""
    optimizer._check_variables_are_known(variables)


def average_of(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> Any:
    """The moving average that an optimizer with `use_ema` keeps of one of its variables."""
    return optimizer._model_variables_moving_average[optimizer._get_variable_index(variable)]


class SwappedAverages:
    """For `keras.callbacks.SwapEMAWeights`, which finds an optimizer's averages by this name."""

    def _optimizers_of_averages(self) -> list[tuple[keras.optimizers.Optimizer, keras.Variable]]:
        """For each variable the optimizer that keeps its average; AttributeError if none does."""
        raise NotImplementedError

    @property
    def _model_variables_moving_average(self) -> list[keras.Variable]:
        return [average_of(*pair) for pair in self._optimizers_of_averages()]
