"""The mark that keeps `phi` apart from the model's parameters."""

from collections.abc import Iterable

import keras

_MARK = "_relax_tf_control_variate"


def mark_control_variates(variables: Iterable[keras.Variable]) -> None:
    """Marks variables as `phi`: `RelaxOptimizer` reads it, paths change across save and load."""
    for variable in variables:
        setattr(variable, _MARK, True)


def is_control_variate(variable: keras.Variable) -> bool:
    """Whether a variable is part of an estimator rather than of the model."""
    return getattr(variable, _MARK, False)
