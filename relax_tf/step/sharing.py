"""Networks of estimators that share a layer with the model: refused."""

from typing import Any

import keras

from relax_tf.estimators import Estimator
from relax_tf.keras_internals import inner_layers, own_variables


def refuse_shared_layers(model: Any) -> None:
    """Raises a ValueError if a control variate or a baseline has layers of the model in it."""
    for name, layers in shared_layers(model).items():
        raise ValueError(
            f"the control variate or baseline of the stochastic layer {name!r} shares the layers "
            f"{layers}, or weights of theirs, with the model. They would learn to reduce variance "
            "and no longer the model's loss. Give the estimator a network of its own "
            "(keras.models.clone_model copies one)."
        )


def shared_layers(model: keras.Model) -> dict[str, list[str]]:
    """The layers inside the model's estimators that belong to the rest of the model as well.

    A control variate or baseline that shares a layer with the model would learn two things with
    one set of weights.

    Returns:
        For each estimator that shares some: its stochastic layer's name (before it is built its
        own) and the names of the layers that are shared, or whose weights are: those reachable
        from the model on a way that does not pass through any estimator.
    """
    outside, found = _reachable(model, stop=Estimator)
    shared = {}
    for estimator in found:
        inside = [estimator, *_reachable(estimator)[0]]
        made_by = {layer.name for layer in inside}
        borrowed = {
            id(variable)
            for layer in inside
            for variable in own_variables(layer)
            if variable.trainable and made_by.isdisjoint(variable.path.split("/")[:-1])
        }
        names = [
            layer.name
            for layer in [model, *outside]
            if layer in inside or any(id(v) in borrowed for v in own_variables(layer))
        ]
        if names:
            owner = getattr(estimator, "owner", lambda: None)() or estimator
            shared[owner.name] = sorted(names)
    return shared


def _reachable(
    root: keras.layers.Layer, stop: type | tuple[type, ...] = ()
) -> tuple[list[keras.layers.Layer], list[keras.layers.Layer]]:
    """The layers inside a layer, inputs aside, not through those of a class `stop`; the latter."""
    inside, stopped, pending = [], [], inner_layers(root)
    seen = {id(root)}
    while pending:
        layer = pending.pop(0)
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        if isinstance(layer, stop):
            stopped.append(layer)
        elif not isinstance(layer, keras.layers.InputLayer):
            inside.append(layer)
            pending.extend(inner_layers(layer))
    return inside, stopped
