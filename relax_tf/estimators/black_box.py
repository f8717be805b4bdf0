"""Finds Python code that hides in a cost which looks differentiable."""

import tensorflow as tf

_WITHOUT_GRADIENT = {"PyFunc", "PyFuncStateless"}


def crosses_numpy_function(source: tf.Tensor, target: tf.Tensor) -> bool:
    """Whether part of the way from `source` to `target` runs through a `tf.numpy_function`.

    TensorFlow would differentiate the rest of such a cost and silently leave that part out, and
    an estimator that relies on the derivative of its control variate would be biased. The check
    reads the graph; for eager tensors there is none, and it answers False.
    """
    if not hasattr(target, "op") or tf.executing_eagerly():
        return False
    return any(
        op.type in _WITHOUT_GRADIENT and _depends_on(op.inputs, source)
        for op in _ancestors([target])
    )


def _ancestors(tensors) -> set:
    found, pending = set(), [tensor.op for tensor in tensors]
    while pending:
        op = pending.pop()
        if op not in found:
            found.add(op)
            pending.extend(tensor.op for tensor in op.inputs)
    return found


def _depends_on(tensors, source: tf.Tensor) -> bool:
    return source.op in _ancestors(tensors)
