"""The `Estimate` and how it enters backpropagation: free of Keras, free of any one estimator."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from relax_tf.distributions.base import Distribution, sum_event
from relax_tf.validation import as_long_as, function

Cost = Callable[[tf.Tensor], tf.Tensor]

ONE_COST_PER_EXAMPLE = "the cost must return one value per example"


class Estimate(NamedTuple):
    """What an estimator returns. Costs are in the units of the cost (nats for an ELBO).

    Attributes:
        sample: the sample as the cost received it, shape `[batch, *event]`; of an estimator with
            K samples `[K, batch, *event]`.
        cost: `f(b)`, shape `[batch]`; of an estimator with K samples their mean (`vimco`: minus
            the bound).
        gradient: the estimate of `d E[f] / d theta` through the sample, per example, with the
            shape (structure) of `theta`. It carries no gradient into the model, and leaves out a
            direct dependence of `f` on `theta`.
        surrogate: a scalar with value `mean(f(b))`. Its gradient with respect to anything that
            `theta` or the cost depends on is the estimate, direct dependence included.
        second_moment: a scalar, the batch mean of `sum(gradient ** 2)` over the event.
        control_variate_loss: a scalar, what the estimator's own variables minimise. It is
            differentiable with respect to them and to nothing else.
    """

    sample: tf.Tensor
    cost: tf.Tensor
    gradient: Any
    surrogate: tf.Tensor
    second_moment: tf.Tensor
    control_variate_loss: tf.Tensor


def batch_mean(value: tf.Tensor) -> tf.Tensor:
    """The mean over `[batch]`, and 0 for an empty batch."""
    return tf.math.divide_no_nan(tf.reduce_sum(value), tf.cast(tf.size(value), value.dtype))


def second_moment(gradient: Any) -> tf.Tensor:
    """The batch mean of `sum(gradient ** 2)` over the event and the structure of theta."""
    return batch_mean(tf.add_n([sum_event(tf.square(leaf)) for leaf in tf.nest.flatten(gradient)]))


def attach_gradient(
    value: tf.Tensor, inputs: Sequence[tf.Tensor], gradients: Sequence[tf.Tensor]
) -> tf.Tensor:
    """A scalar equal to `value` whose gradient with respect to `inputs` is `gradients`."""
    gradients = [tf.stop_gradient(gradient) for gradient in gradients]

    @tf.custom_gradient
    def attached(*inputs):
        del inputs
        return tf.stop_gradient(value), lambda upstream: [
            tf.cast(upstream, g.dtype) * g for g in gradients
        ]

    return attached(*inputs)


def path_to_theta(dist: Distribution, gradient: Any, f_b: tf.Tensor) -> tf.Tensor:
    """A scalar 0 whose gradient with respect to theta is the batch mean's share of `gradient`.

    What comes after an estimate (the chain rule to the weights, eq. 17) is TensorFlow's, what
    comes before it is ours, and this is the door between them: nothing else passes. It is made of
    plain operations, since `tf.vectorized_map` loses every `tf.custom_gradient`.
    """
    examples = tf.cast(tf.maximum(tf.size(f_b), 1), f_b.dtype)
    zero = tf.zeros([], f_b.dtype)
    for theta, leaf in zip(*map(tf.nest.flatten, (dist.theta, gradient)), strict=True):
        known = tf.stop_gradient(theta)
        share = tf.stop_gradient(leaf / examples)
        zero += tf.reduce_sum(share * tf.where(tf.math.is_finite(known), theta - known, 0))
    return zero


def package(
    dist: Distribution,
    sample: tf.Tensor,
    f_b: tf.Tensor,
    gradient: Any,
    loss: tf.Tensor | None = None,
) -> Estimate:
    """The `Estimate` around a gradient. Without a `loss` there is nothing to learn."""
    moment = second_moment(gradient)
    return Estimate(
        sample=sample,
        cost=f_b,
        gradient=gradient,
        surrogate=batch_mean(f_b) + path_to_theta(dist, gradient, f_b),
        second_moment=moment,
        control_variate_loss=moment if loss is None else loss,
    )


def check_problem(dist: Any, cost: Any) -> None:
    """Raises a TypeError unless these are a distribution and a cost."""
    if not isinstance(dist, Distribution):
        raise TypeError(
            "`dist` must be a distribution of relax_tf.distributions. "
            f"Received: {dist!r} (of type {type(dist).__name__})"
        )
    function(cost, "cost")


def evaluate_cost(cost: Cost, sample: tf.Tensor, dist: Distribution) -> tf.Tensor:
    """The cost of a sample `[..., batch, *event]`, checked to be `[..., batch]`."""
    leading = sample.shape.rank - dist.shape.rank
    try:
        f_b = check_cost(cost(sample), sample.shape[: 1 + leading], dist.dtype)
        return as_long_as(f_b, sample, ONE_COST_PER_EXAMPLE, axes=1 + leading)
    except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
        if not leading:
            raise
        raise ValueError(
            f"the cost failed at {sample.shape[0]} samples at once, shape {tuple(sample.shape)}. A "
            "cost that takes one sample of each example at a time, [batch, *event], as a Keras "
            f"model does, needs an estimator made with fold=True. The error was: {error}"
        ) from error


def one_at_a_time(cost: Cost, rank: int) -> Cost:
    """A cost of `[K, batch, *event]` that calls `cost` once for each sample, of this rank."""

    def folded(sample: tf.Tensor) -> tf.Tensor:
        if sample.shape.rank == rank:
            return cost(sample)
        return tf.stack([cost(one) for one in tf.unstack(sample)])

    return folded


def check_cost(f_b: Any, expected: tf.TensorShape, dtype: tf.DType) -> tf.Tensor:
    """The values of a cost as a tensor of this shape and dtype, or an error that says why not."""
    try:
        f_b = tf.convert_to_tensor(f_b)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the cost must return a tensor of shape [batch]. Received: {f_b!r}"
        ) from error
    if not (f_b.dtype.is_floating or f_b.dtype.is_integer):
        raise TypeError(f"the cost must return real numbers. Received dtype: {f_b.dtype.name}")
    if not f_b.shape.is_compatible_with(expected):
        raise ValueError(
            f"the cost must return one value per example, shape {tuple(expected)}. "
            f"Received shape: {tuple(f_b.shape)}{_about_the_batch(f_b.shape, expected)}"
        )
    return tf.ensure_shape(tf.cast(f_b, dtype), expected)


def _about_the_batch(received: tf.TensorShape, expected: tf.TensorShape) -> str:
    """A remedy, where it looks as if theta had another batch than the cost, or none."""
    if received.rank == expected.rank and expected[-1] == 1 and received[:-1] == expected[:-1]:
        batch = received[-1]
        return (
            f". Theta has batch 1 while the cost has batch {batch}: to draw a sample of one theta "
            f"for each example, repeat theta over the batch, tf.repeat(theta, {batch}, axis=0) or "
            "keras.ops.repeat."
        )
    if received.rank == expected.rank - 1 and received == expected[:-1]:
        return (
            ". Take sums or means over all axes but the first, which is the batch. (The first axis "
            f"of theta, of size {expected[-1]}, is the batch: if these are the variables of a "
            "single example, add a batch axis, theta[tf.newaxis].)"
        )
    if received.rank is not None and received.rank > expected.rank:
        return ". Take sums or means over the axes behind the batch, or tf.squeeze(cost, -1)."
    return ""
