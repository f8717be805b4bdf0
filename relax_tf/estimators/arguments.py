"""What users hand to `Estimator.estimate` besides the distribution and the cost, checked.

And what methods of an estimator of one's own return.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from relax_tf.distributions.base import Distribution, Draw
from relax_tf.validation import as_long_as, refuse_sparse


def checked_context(dist: Distribution, context: Any) -> tf.Tensor:
    """The context as a tensor of real numbers with the batch of `dist`."""
    refuse_sparse(context, "`context`")
    try:
        context = tf.convert_to_tensor(context)
        real = context.dtype.is_floating or context.dtype.is_integer or context.dtype.is_bool
    except (TypeError, ValueError):
        real = False
    if not real:
        raise TypeError(
            f"`context` must be a tensor of real numbers, shape [batch, ...]. Received: {context!r}"
        )
    if context.shape.rank == 0 or not context.shape[:1].is_compatible_with(dist.shape[:1]):
        raise ValueError(
            f"`context` must have shape [batch, ...] with the batch of `dist`, {dist.shape[0]}. "
            f"Received shape: {tuple(context.shape)}"
        )
    return as_long_as(context, dist.first_theta, "the context must have the batch of theta")


def checked_draw(dist: Distribution, draw: Any, shape: tf.TensorShape) -> Draw:
    """The draw with `b` made of `z`, both of this shape."""
    try:
        b, z = (tf.cast(part, dist.dtype) for part in draw)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`draw` must be a pair (b, z) as `dist.draw()` returns it. Received: {draw!r}"
        ) from error
    for name, part in (("b", b), ("z", z)):
        if not part.shape.is_compatible_with(shape):
            what = "one sample" if shape.rank == dist.shape.rank else f"{shape[0]} samples"
            raise ValueError(
                f"`draw.{name}` must have the shape of {what}, {tuple(shape)}. "
                f"Received shape: {tuple(part.shape)}"
            )
    if not shape.is_fully_defined():
        leading = tf.shape(z)[: shape.rank - dist.shape.rank]
        like = dist.first_theta
        like = tf.broadcast_to(like, tf.concat([leading, tf.shape(like)], 0))
        z = as_long_as(z, like, "a draw must have the shape of theta", axes=shape.rank)
    return Draw(dist.harden(z), z)


def checked_gradient(dist: Distribution, returned: Any, estimator_id: str) -> tuple[Any, Any]:
    """The gradient, of the shapes of theta, and the loss that `estimate_gradient` returned."""
    if not (isinstance(returned, tuple) and len(returned) == 2):
        raise TypeError(
            f"`estimate_gradient` of estimator {estimator_id!r} must return a pair: the gradient, "
            "and a scalar loss of the estimator's own or None (`return gradient, None`). "
            f"Received: {returned!r}"
        )
    gradient, loss = returned
    if not _fits(gradient, dist.theta):
        expected = tf.nest.map_structure(lambda theta: tuple(theta.shape), dist.theta)
        received = tf.nest.map_structure(lambda leaf: getattr(leaf, "shape", leaf), gradient)
        raise ValueError(
            f"the gradient of estimator {estimator_id!r} must have the shape of theta, {expected}: "
            "it is the derivative in each parameter of each example, no mean and no sum. "
            f"Received shape: {received}"
        )
    return gradient, loss


def check_event(dist: Distribution, event: Sequence[int | None], estimator_id: str) -> None:
    """Raises a ValueError unless `dist` has the variables that an estimator was built for."""
    if not dist.shape[1:].is_compatible_with(event):
        raise ValueError(
            f"estimator {estimator_id!r} was built for a theta of shape {(None, *event)}, of whose "
            "units it has learned something each: make a new one for another theta. "
            f"Received shape: {tuple(dist.shape)}"
        )


def checked_objective(dist: Distribution, objective: Any, estimator_id: str) -> tf.Tensor:
    """What `combine` returned: one number for each example, whose mean the surrogate is."""
    objective = tf.convert_to_tensor(objective)
    if not objective.shape.is_compatible_with(dist.shape[:1]):
        raise ValueError(
            f"`combine` of estimator {estimator_id!r} must return the objective of each example, "
            f"shape {tuple(dist.shape[:1])}, from costs of shape [num_samples, batch]. "
            f"Received shape: {tuple(objective.shape)}"
        )
    return objective


def _fits(gradient: Any, theta: Any) -> bool:
    leaves, thetas = tf.nest.flatten(gradient), tf.nest.flatten(theta)
    alike = (len(leaves), tf.nest.is_nested(gradient)) == (len(thetas), tf.nest.is_nested(theta))
    return alike and all(
        hasattr(leaf, "shape") and of_theta.shape.is_compatible_with(leaf.shape)
        for leaf, of_theta in zip(leaves, thetas, strict=True)
    )
