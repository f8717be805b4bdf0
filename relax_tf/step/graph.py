"""What a functional model's graph proves about the order of its stochastic layers."""

from collections.abc import Sequence
from typing import Any

import keras

from relax_tf.keras_internals import Functional, nodes
from relax_tf.layers.passes import Call


def may_depend(model: keras.Model, calls: Sequence[Call], later: Any, on: Any) -> bool:
    """Whether a call of the layer `later` may depend on a sample of the layer `on`.

    False only where the graph excludes it: in a functional model that is called as Keras calls it,
    if all calls of the two layers are operations of the model's own outer graph, and no path leads
    from any of the one's to any of the other's. Whatever happens inside an operation (a nested
    model, a recurrent layer, a layer of the user's), in a subclass or in the cost is not looked
    into: there everything counts as dependent.

    Args:
        model: the model.
        calls: of the hard pass.
        later, on: stochastic layers.
    """
    if not is_called_by_its_graph(model):
        return True
    calls_in_graph = nodes(model)
    for layer in (later, on):
        of_layer = [call for call in calls if call.layer is layer]
        in_graph = [node for node in calls_in_graph if _draws(node, layer)]
        if len(of_layer) != len(in_graph):
            return True
    reached = set()
    for node in calls_in_graph:
        if any(parent in reached for parent in node.parent_nodes):
            reached.add(node)
            if _draws(node, later):
                return True
        if _draws(node, on):
            reached.add(node)
    return False


def _draws(node: Any, layer: Any) -> bool:
    """Whether an operation is a sample of the layer; its `mean` is none."""
    return node.operation is layer and node.arguments.kwargs.get("output") != "mean"


def is_called_by_its_graph(model: keras.Model) -> bool:
    return (
        isinstance(model, Functional)
        and getattr(model.call, "__func__", None) is Functional.call
        and type(model).__call__ is keras.Layer.__call__
    )
