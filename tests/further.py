"""Further cases of what a test's first cases show, behind the marker `slow`.

Every kind of model, estimator, mode and precision has a case without it; what is here repeats one
of them with another estimator, another stack or another execution mode.
"""

import pytest


def further(*cases):
    """The cases, each the value or the tuple of values that `parametrize` takes, marked `slow`."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in cases
    ]
