"""When control variates learn: in every step, or in every k-th to save its cost.

`RelaxOptimizer(control_variate_update_every=k)` decides. In the steps between, what phi would learn
is not even computed.
"""

import contextlib
import contextvars
from collections.abc import Callable, Sequence

import tensorflow as tf

from relax_tf.holding import holding

_due = contextvars.ContextVar("due", default=None)


def learning(due: tf.Tensor | None) -> contextlib.AbstractContextManager:
    """While active, control variates learn if `due`, a boolean scalar, is true (None: always)."""
    return holding(_due, due)


def if_due(
    compute: Callable[[], Sequence[tf.Tensor]], variables: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    """What `compute` returns, a gradient for each variable; zeros where none is due."""
    due = _due.get()
    if due is None:
        return list(compute())
    return tf.cond(
        due,
        lambda: [tf.convert_to_tensor(gradient) for gradient in compute()],
        lambda: [tf.zeros_like(variable) for variable in variables],
    )
