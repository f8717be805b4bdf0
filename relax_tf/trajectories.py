"""What an agent hands to `relax_tf.policy_gradients`: actions, noise and returns, checked."""

from typing import Any

import numpy as np
import tensorflow as tf

from relax_tf.distributions.base import Distribution, Draw, over_event
from relax_tf.distributions.bernoulli import Bernoulli
from relax_tf.distributions.one_hot_categorical import OneHotCategorical
from relax_tf.estimators.base import Estimator
from relax_tf.validation import as_long_as, true_or_nan

_IMPOSSIBLE = (
    "`action` must be one that the policy can take: it has logit -inf (leave padding out, "
    "`tf.boolean_mask`)"
)


def check_estimator(estimator: Estimator, dist: Distribution) -> None:
    """Raises a TypeError or ValueError unless the estimator can work with returns."""
    if not isinstance(estimator, Estimator):
        raise TypeError(
            "`estimator` must be an estimator of relax_tf.estimators. "
            f"Received: {estimator!r} (of type {type(estimator).__name__})"
        )
    if not isinstance(dist, Distribution):
        raise TypeError(
            "`dist` must be a distribution of relax_tf.distributions. "
            f"Received: {dist!r} (of type {type(dist).__name__})"
        )
    estimator.check_defined_for(type(dist))
    if not estimator.needs_cost or estimator.evaluations != 1:
        raise ValueError(
            "a return is known at the action taken only, and has no derivative: use 'relax', "
            "'lax', 'nvil' or 'reinforce'. Received: the estimator "
            f"{type(estimator).__name__}, which needs more"
        )


def real_tensor(value: Any, name: str, dtype: tf.DType | None = None) -> tf.Tensor:
    """`value` as a float tensor, of `dtype` if one is given."""
    try:
        received = tf.convert_to_tensor(value).dtype
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be made of real numbers. Received: {value!r}") from error
    if not (received.is_floating or received.is_integer):
        raise TypeError(f"`{name}` must be made of real numbers. Received dtype: {received.name}")
    if dtype is None:
        dtype = tf.float64 if received == tf.float64 else tf.float32
    # The hint keeps Python's numbers exact; tensors of another dtype are cast.
    return tf.cast(tf.convert_to_tensor(value, dtype_hint=dtype), dtype)


def of_steps(value: tf.Tensor, dist: Distribution, name: str) -> tf.Tensor:
    """`value`, if it has the steps of the distribution; else a ValueError."""
    if value.shape.rank == 0 or not value.shape[:1].is_compatible_with(dist.shape[:1]):
        raise ValueError(
            f"`{name}` must have as many steps as the distribution, {dist.shape[0]}. "
            f"Received shape: {tuple(value.shape)}"
        )
    what = f"{name} must have as many steps as the distribution"
    return as_long_as(value, dist.first_theta, what)


def as_sample(action: Any, dist: Distribution) -> tf.Tensor:
    """Actions in the shape of a sample; integers `[time]` name the classes of a categorical."""
    action = real_tensor(action, "action", dist.dtype)
    if isinstance(dist, OneHotCategorical) and dist.shape.rank == 2 and action.shape.rank == 1:
        known, classes = tf.get_static_value(action), dist.shape[-1]
        if known is not None and not np.isin(known, range(classes)).all():
            raise ValueError(
                f"`action` must be whole numbers from 0 to {classes - 1}. Received: {known}"
            )
        action = of_steps(action, dist, "action")
        return tf.cast(action[:, tf.newaxis] == tf.range(classes, dtype=dist.dtype), dist.dtype)
    if not action.shape.is_compatible_with(dist.shape):
        raise ValueError(
            f"`action` must have the shape of a sample, {tuple(dist.shape)}, or for one "
            "categorical variable be the classes' numbers, [time]. "
            f"Received shape: {tuple(action.shape)}"
        )
    return of_steps(action, dist, "action")


def draw_of(dist: Distribution, action: tf.Tensor, z: Any, seed: tf.Tensor) -> Draw:
    """The draw behind actions: of a given `z`, or of one drawn from `p(z|action)`."""
    given = z is not None
    if not given:
        z = dist.conditional_draw(action, seed) if dist.discrete else action
    z = real_tensor(z, "z", dist.dtype)
    if not z.shape.is_compatible_with(dist.shape):
        raise ValueError(
            f"`z` must have the shape of a sample, {tuple(dist.shape)}. "
            f"Received shape: {tuple(z.shape)}"
        )
    z = of_steps(z, dist, "z")
    b = dist.harden(z)
    expected = (
        "`z` must be the variable that `action` was read from, action = H(z)"
        if given
        else "`action` must be made of samples of the distribution, values of its support"
    )
    if given or dist.discrete:
        b = _in_all_steps(abs(action - b) <= 1e-4, b, expected)
    if isinstance(dist, (Bernoulli, OneHotCategorical)):
        log_prob = dist.log_prob(b)
        possible = over_event(~(tf.math.is_inf(log_prob) & (log_prob < 0)), b)
        b = _in_all_steps(possible, b, _IMPOSSIBLE)
    return Draw(tf.stop_gradient(b), tf.stop_gradient(z))


def _in_all_steps(condition: tf.Tensor, b: tf.Tensor, expected: str) -> tf.Tensor:
    """`b`, if the condition holds in all steps: else an error."""
    known = tf.get_static_value(condition)
    if known is None:
        return true_or_nan(condition, b, expected)
    if not known.all():
        steps = len(known)
        others = (~known.reshape(steps, -1).all(-1)).sum()
        raise ValueError(f"{expected}. Received: others in {others} of {steps} steps")
    return b
