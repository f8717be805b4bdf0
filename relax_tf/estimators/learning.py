"""When control variates learn: in every step, or in every k-th to save its cost.

`RelaxOptimizer(control_variate_update_every=k)` decides. In the steps between, what phi would learn
is not even computed.
"""

import contextlib
import contextvars
from collections.abc import Callable, Sequence

import keras
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


def gradients_of_phi(
    tape: tf.GradientTape,
    loss: tf.Tensor,
    phi: Sequence[tf.Tensor],
    variables: Sequence[keras.Variable],
    estimator_id: str,
) -> list[tf.Tensor]:
    """The gradient of `loss` in the values `phi` of these variables, or an error that says why not.

    Raises:
        ValueError: if there is none for one of them.
    """
    try:
        gradients = tape.gradient(loss, phi)
    except (
        LookupError,
        NotImplementedError,
    ) as error:  # no gradient registered, or one that forbids a second
        raise ValueError(
            f"estimator {estimator_id!r} learns from the derivative of its control variate, so the "
            "cost and the networks in it must be twice differentiable, but an operation in "
            "them is not (see the error above). Use estimator='relax' or 'disarm', which do "
            "not differentiate the cost, or 'muprop', which does so once."
        ) from error
    for variable, gradient in zip(variables, gradients, strict=True):
        if gradient is None:
            raise ValueError(
                f"the control variate's variable {variable.path!r} receives no gradient from "
                f"the loss of estimator {estimator_id!r}: it would stay untrained. Use it in the "
                "control variate, or set `trainable=False`."
            )
    return gradients
