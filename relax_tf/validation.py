"""Checks of arguments whose messages say what was expected and what was received."""

import math
import numbers
from collections.abc import Iterable
from typing import Any

import tensorflow as tf


def positive_number(value: Any, name: str) -> float:
    """`value` as a float if it is a finite number above 0."""
    number = real_number(value, name)
    if number <= 0:
        raise ValueError(f"`{name}` must be a positive number. Received: {value!r}")
    return number


def positive_if_number(value: Any, name: str) -> Any:
    """`value` if it is a tensor or a variable, whose values are not looked at, or as above."""
    return value if hasattr(value, "shape") else positive_number(value, name)


def real_number(value: Any, name: str) -> float:
    """`value` as a float if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"`{name}` must be a number. Received: {value!r} (of type {type(value).__name__})"
        )
    if not math.isfinite(value):
        raise ValueError(f"`{name}` must be a finite number. Received: {value!r}")
    return float(value)


def decay_rate(value: Any, name: str) -> float:
    """`value` as a float if it is a number in [0, 1)."""
    number = real_number(value, name)
    if not 0 <= number < 1:
        raise ValueError(f"`{name}` must be a number in [0, 1). Received: {value!r}")
    return number


def positive_integer(value: Any, name: str) -> int:
    """`value` as an int if it is an integer above 0."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(
            f"`{name}` must be an integer. Received: {value!r} (of type {type(value).__name__})"
        )
    if int(value) < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")
    return int(value)


def positive_integers(value: Any, name: str) -> list[int]:
    """`value` as a list of ints if it is a sequence of at least one positive integer."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(
            f"`{name}` must be a sequence of integers. Received: {value!r} "
            f"(of type {type(value).__name__})"
        )
    integers = [positive_integer(item, name) for item in value]
    if not integers:
        raise ValueError(f"`{name}` must hold at least one integer. Received: {value!r}")
    return integers


def integer_of_at_least(minimum: int, value: Any, name: str) -> int:
    """`value` as an int if it is an integer not below `minimum`."""
    if positive_integer(value, name) < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}. Received: {value!r}")
    return int(value)


def function(value: Any, name: str) -> Any:
    """`value` if it can be called."""
    if not callable(value):
        raise TypeError(
            f"`{name}` must be callable. Received: {value!r} (of type {type(value).__name__})"
        )
    return value


def boolean(value: Any, name: str) -> bool:
    """`value` if it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(
            f"`{name}` must be True or False. Received: {value!r} (of type {type(value).__name__})"
        )
    return value


def one_of(value: Any, choices: Iterable[Any], name: str) -> Any:
    """`value` if it is among `choices`."""
    choices = list(choices)
    if not any(value is choice or value == choice for choice in choices):
        raise ValueError(f"`{name}` must be one of {choices}. Received: {value!r}")
    return value


def refuse_sparse(value: Any, what: str) -> None:
    """Raises a ValueError for a `tf.SparseTensor`, or the symbol of one."""
    if isinstance(value, tf.SparseTensor) or getattr(value, "sparse", False):
        raise ValueError(
            f"{what} must be a dense tensor, which the control variate can read. Make it one: "
            "tf.sparse.to_dense(x), keras.Input(sparse=False), or a keras.layers.Dense before it. "
            f"Received: a sparse tensor of shape {tuple(value.shape)}"
        )


def as_long_as(value: tf.Tensor, like: tf.Tensor, what: str, axes: int = 1) -> tf.Tensor:
    """`value`, whose first axes must be those of `like`, also where that shows when it runs only.

    There an axis of length 1 would be broadcast in place of an error.

    Raises:
        tf.errors.InvalidArgumentError: of which `what` is the message; as in `true_or_nan`.
    """
    if like.shape[:axes].is_fully_defined() and value.shape[:axes].is_fully_defined():
        return value  # and somebody has looked
    shape, expected = tf.shape(value), tf.shape(like)
    same = tf.reduce_all(shape[:axes] == expected[:axes])
    checked = true_or_nan(same, value, what, shape, expected)
    checked.set_shape(like.shape[:axes].concatenate(value.shape[axes:]))
    return checked


def true_or_nan(condition: tf.Tensor, value: tf.Tensor, *message: Any) -> tf.Tensor:
    """`value` where the condition holds; where not, an error, in a graph when it runs.

    XLA drops assertions: there it is NaN, if it is floating point.
    """
    assertion = tf.debugging.Assert(tf.reduce_all(condition), message)
    with tf.control_dependencies([] if assertion is None else [assertion]):
        if not value.dtype.is_floating:
            return tf.identity(value)
        return nan_unless(condition, value)


def nan_unless(condition: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """`value`, and NaN where the condition does not hold.

    No constant, which `tf.debugging.enable_check_numerics` would find.
    """
    return value * tf.sqrt(2 * tf.cast(condition, value.dtype) - 1)
