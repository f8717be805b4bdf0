"""Finds Python code that hides in a cost which looks differentiable.

TensorFlow differentiates the rest of such a cost and silently leaves the `tf.numpy_function` out.
An estimator that relies on the derivative of its control variate would then be biased.
"""

from collections.abc import Callable, Iterable

import tensorflow as tf

_WITHOUT_GRADIENT = {"PyFunc", "PyFuncStateless"}


def crosses_numpy_function(source: tf.Tensor, target: tf.Tensor) -> bool:
    """Whether part of the way from `source` to `target` runs through a `tf.numpy_function`.

    Reads the graph, nested functions included. Eager tensors have none: False.
    """
    if tf.executing_eagerly() or not hasattr(target, "op"):
        return False
    return any(
        _contains_numpy_function(op) and source.op in _ancestors(op.inputs)
        for op in _ancestors([target])
    )


def graph_calls_python() -> bool:
    """Whether the graph under construction has a `tf.numpy_function`; False in eager execution."""
    if tf.executing_eagerly():
        return False
    return any(map(_contains_numpy_function, tf.compat.v1.get_default_graph().get_operations()))


def traces_to_numpy_function(
    function: Callable[[tf.Tensor], tf.Tensor], argument: tf.Tensor
) -> bool:
    """The same for an eager call: traces `function` once. False if it cannot be traced."""
    found = []

    def traced(source):
        target = function(source)
        found.append(crosses_numpy_function(source, tf.convert_to_tensor(target)))

    try:
        tf.function(traced, autograph=False).get_concrete_function(
            tf.TensorSpec(argument.shape, argument.dtype)
        )
    except Exception:  # whatever the user's code does in a graph that it does not do eagerly
        return False
    return found[-1]


class PythonDetector:
    """Whether a cost that was just differentiated hides Python, also in eager calls.

    Those need a trace of the cost, which is made once for each.
    """

    def __init__(self):
        self._examined = set()

    def __call__(
        self, cost: Callable[[tf.Tensor], tf.Tensor], source: tf.Tensor, target: tf.Tensor
    ) -> bool:
        """Given `target = cost(source)`, where `source` may have been transformed on the way."""
        code = getattr(cost, "__code__", type(cost))
        if not tf.executing_eagerly() or code in self._examined:
            return crosses_numpy_function(source, target)
        self._examined.add(code)
        return traces_to_numpy_function(cost, source)


def _ancestors(tensors: Iterable[tf.Tensor]) -> set[tf.Operation]:
    found, pending = set(), [tensor.op for tensor in tensors]
    while pending:
        op = pending.pop()
        if op not in found:
            found.add(op)
            pending.extend(tensor.op for tensor in op.inputs)
    return found


def _contains_numpy_function(op: tf.Operation) -> bool:
    if op.type in _WITHOUT_GRADIENT:
        return True
    called = _called_functions(op.node_def)
    if not called:
        return False
    library = {f.signature.name: f for f in op.graph.as_graph_def().library.function}
    pending, seen = list(called), set()
    while pending:
        name = pending.pop()
        if name in seen or name not in library:
            continue
        seen.add(name)
        for node in library[name].node_def:
            if node.op in _WITHOUT_GRADIENT:
                return True
            pending.extend(_called_functions(node))
    return False


def _called_functions(node_def) -> list[str]:
    return [value.func.name for value in node_def.attr.values() if value.func.name]
