"""Weights that are all but zero, lifted: a network behind them shows what it depends on."""

from collections.abc import Iterable

import keras
import numpy as np
import tensorflow as tf

_SHUT = 1e-3  # weights below this may be gates that open later


def lift(variables: Iterable[keras.Variable]) -> None:
    """Small positive numbers for the floating variables that are all but zero."""
    random = np.random.RandomState(0)
    for variable in variables:
        if not tf.as_dtype(variable.dtype).is_floating:
            continue
        value = variable.numpy()
        if np.abs(value).max(initial=0) < _SHUT:
            variable.assign(0.1 * np.abs(random.normal(size=value.shape)))
