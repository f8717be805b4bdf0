"""What depends on what in a functional model."""

import keras


def may_depend(model: keras.Model, layer: keras.layers.Layer, on: keras.layers.Layer) -> bool:
    """Whether a call of `layer` may depend on the output of a call of another layer, `on`.

    False only where the graph of a functional model excludes it. True in other models, and where
    one operation of the graph (a nested model) holds both layers.
    """
    if not hasattr(model, "_nodes_by_depth"):
        return True
    dependent = set()
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            inside = _layers_inside(node.operation)
            if any(parent in dependent for parent in node.parent_nodes):
                dependent.add(node)
                if layer in inside:
                    return True
            if on in inside:
                dependent.add(node)
                if layer in inside and layer is not on:
                    return True
    return False


def _layers_inside(operation: keras.Operation) -> list[keras.layers.Layer]:
    """The operation itself, if it is a layer, and all layers within it."""
    if not isinstance(operation, keras.layers.Layer):
        return []
    return list(operation._flatten_layers())
