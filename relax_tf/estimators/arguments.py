"""What users hand to `Estimator.estimate` besides the distribution and the cost, checked."""

from typing import Any

import tensorflow as tf

from relax_tf.distributions.base import Distribution, Draw
from relax_tf.validation import refuse_sparse


def checked_context(dist: Distribution, context: Any) -> tf.Tensor:
    """The context as a tensor of real numbers with the batch of `dist`."""
    refuse_sparse(context, "`context`")
    try:
        context = tf.convert_to_tensor(context)
        real = context.dtype.is_floating or context.dtype.is_integer
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
    return context


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
    return Draw(dist.harden(z), z)
