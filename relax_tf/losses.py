"""The one loss we ship, and compiled Keras losses per example."""

import math
from typing import Any

import keras
import tensorflow as tf

from relax_tf.keras_internals import flat_losses, mask_of, replaced_losses

__all__ = ["BernoulliNegativeLogLikelihood"]


@keras.saving.register_keras_serializable("relax_tf")
class BernoulliNegativeLogLikelihood(keras.losses.Loss):
    """`-log p(x)` of binary data, in nats, summed over everything but the batch, from logits.

    Args:
        reduction, name, dtype: as in any Keras loss.

    Inputs: `y_true` in [0, 1] and logits `y_pred`, both `[batch, ...]`; unreduced `[batch]`. What
    Keras's mask of `y_pred` hides, `[batch, time]` for example, is left out of the sum.

    Raises:
        ValueError: if data and logits differ in shape, or the mask does not have their leading
            axes.

    Example:

    >>> loss = relax_tf.losses.BernoulliNegativeLogLikelihood()
    >>> round(float(loss(tf.ones([1, 4]), tf.zeros([1, 4]))) / 4, 4)  # log 2
    0.6931
    """

    def __init__(
        self,
        reduction: str = "sum_over_batch_size",
        name: str = "bernoulli_negative_log_likelihood",
        dtype: Any = None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def __call__(self, y_true, y_pred, sample_weight=None):
        return super().__call__(y_true, _beside_its_mask(y_pred), sample_weight)

    def call(self, y_true, y_pred):
        y_pred, mask = y_pred if isinstance(y_pred, tuple) else (y_pred, None)
        if not y_true.shape.is_compatible_with(y_pred.shape):
            raise ValueError(
                "BernoulliNegativeLogLikelihood needs data and logits of the same shape. "
                f"Received shapes: {tuple(y_true.shape)} and {tuple(y_pred.shape)}"
            )
        if mask is not None:
            mask = _matching(tf.cast(mask, tf.bool), y_pred)
            y_true, y_pred = (tf.where(mask, v, tf.zeros_like(v)) for v in (y_true, y_pred))
        losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=y_true, logits=y_pred)
        if mask is not None:
            losses = tf.where(mask, losses, tf.zeros_like(losses))
        return tf.reduce_sum(losses, axis=list(range(1, losses.shape.rank)))


def _beside_its_mask(y_pred: Any) -> Any:
    """`(y_pred, mask)` of a masked `y_pred`: Keras hands the pair on to `call` as it is."""
    mask = mask_of(y_pred)
    return y_pred if mask is None else (tf.identity(y_pred), mask)


def _matching(mask: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """A mask of the leading axes of `values` with axes of size 1 for the others.

    Raises:
        ValueError: if it is no such mask.
    """
    if not mask.shape.is_compatible_with(values.shape[: mask.shape.rank]):
        raise ValueError(
            "the mask of logits must have the shape of their leading axes, such as [batch, time]. "
            f"Received shapes: mask {tuple(mask.shape)} and logits {tuple(values.shape)}"
        )
    missing = values.shape.rank - mask.shape.rank
    return tf.reshape(mask, tf.concat([tf.shape(mask), [1] * missing], 0))


def per_example(compile_loss: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> tf.Tensor:
    """The compiled losses of a model, weighted and summed, one value per example: `[batch]`.

    Keras resolves ids, output structures and weights in a `CompileLoss`; this calls it with each
    of its losses replaced by its per-example form. The mean over the batch is the scalar that
    Keras would have computed.

    Args:
        compile_loss: the model's.
        y, y_pred: targets and predictions, in the structure that `compile` was told of.
        sample_weight: None, one tensor, or one for each output.
    """
    if y is None:
        raise ValueError(
            "the compiled loss needs targets. Received: y=None. Pass `y`, or override "
            "`compute_cost` and compile without a loss."
        )
    if not compile_loss.built:
        with keras.StatelessScope():  # a call builds it, and would count in its metrics
            compile_loss(y, y_pred)
    with replaced_losses(compile_loss, _PerExample):  # each output's loss is tracked elsewhere
        return compile_loss(y, y_pred, sample_weight)


# Keras's losses that take the mean of as many losses as an example has numbers.
_MEANS = (
    keras.losses.binary_crossentropy,
    keras.losses.binary_focal_crossentropy,
    keras.losses.huber,
    keras.losses.log_cosh,
    keras.losses.mean_absolute_error,
    keras.losses.mean_squared_error,
    keras.losses.poisson,
)


def averaged_over(compile_loss: Any, y_pred: Any) -> int:
    """Of how many numbers of an example the compiled loss is known to be a mean; 1 if of none.

    Known is that of a sole loss of Keras's own that has no weight.
    """
    losses, outputs = flat_losses(compile_loss), keras.tree.flatten(y_pred)
    if len(losses) != 1 or len(outputs) != 1 or losses[0].loss_weights is not None:
        return 1
    is_mean = getattr(losses[0].loss, "fn", None) in _MEANS
    return outputs[0].shape[1:].num_elements() or 1 if is_mean else 1


def refuse_sums(compile_loss: Any) -> None:
    """Raises a ValueError if one of the compiled losses is summed over the batch.

    Its value per example is the batch size times the loss, and so is not what a bound is of.
    """
    for item in flat_losses(compile_loss):
        if getattr(item.loss, "reduction", None) == "sum":
            raise ValueError(
                f"the compiled loss {item.loss.name!r} has reduction='sum', but the multi-sample "
                "bound of 'vimco' is one of the loss of a single example. Use the default "
                "reduction, 'sum_over_batch_size'."
            )


class _PerExample:
    """A Keras loss that averages over all axes but the first.

    The mean over the batch is the scalar that the loss would return by itself. What Keras divides
    by depends on its reduction, on the masks of the output and of the loss, and on the weights;
    this follows `keras.losses.Loss.__call__` step by step. One thing is our own: weights `[batch]`
    are those of whole examples, also of losses `[batch, time]`, where Keras fails.
    """

    def __init__(self, loss: keras.losses.Loss):
        if type(loss).__call__ is not keras.losses.Loss.__call__ and not isinstance(
            loss, BernoulliNegativeLogLikelihood
        ):
            raise ValueError(
                f"the compiled loss {loss.name!r} overrides `__call__`, which reduces over the "
                "batch. Gradients through samples need one value per example: override `call`, "
                "which returns them."
            )
        self.loss = loss

    def __call__(self, y_true, y_pred, sample_weight=None):
        if isinstance(self.loss, BernoulliNegativeLogLikelihood):
            y_pred = _beside_its_mask(y_pred)
        mask = mask_of(y_pred)
        y_true, y_pred = (self._converted(value) for value in (y_true, y_pred))
        values = self.loss.call(y_true, y_pred)
        if values.shape.rank == 0:
            raise ValueError(
                f"the compiled loss {self.loss.name!r} returns a scalar, but gradients through "
                "samples need one value per example: return shape [batch, ...] and leave the "
                "average over the batch to us. Keras's losses average over the last axis: of "
                "outputs and targets [batch] make [batch, 1]."
            )
        masks = [m for m in (mask, mask_of(values)) if m is not None]
        values = tf.cast(values, self.loss.dtype)
        weights = self._weights(values, masks, sample_weight)
        if weights is not None:
            values, weights = _of_one_rank(values, weights)
            values *= weights
        mean = tf.reduce_mean(values, axis=list(range(1, values.shape.rank)))
        return mean * self._scale(values, weights)

    def _converted(self, tree):
        convert = keras.ops.convert_to_tensor
        return keras.tree.map_structure(lambda value: convert(value, self.loss.dtype), tree)

    def _weights(self, values, masks, sample_weight):
        """Masks and weights in one factor of the values; None if there are none."""
        weights = None
        if sample_weight is not None:
            weights = tf.cast(sample_weight, values.dtype)
            refuse_other_length(weights, values)
            if weights.shape.rank == 1 and values.shape.rank > 1:
                weights = tf.reshape(weights, [-1] + [1] * (values.shape.rank - 1))
        if not masks:
            return weights
        mask = math.prod(tf.cast(mask, values.dtype) for mask in masks)
        if self.loss.reduction in ("mean", "sum_over_batch_size"):  # over what is not masked
            size = tf.cast(tf.size(mask), values.dtype)
            mask *= tf.math.divide_no_nan(size, tf.reduce_sum(mask))
        if weights is None:
            return mask
        mask, weights = _of_one_rank(mask, weights)
        return mask * weights

    def _scale(self, values, weights):
        """What makes the mean over all values Keras's scalar."""
        size = tf.cast(tf.size(values), values.dtype)
        if self.loss.reduction == "sum":
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            return size * replicas  # their average must be the sum
        if self.loss.reduction == "mean_with_sample_weight" and weights is not None:
            return tf.math.divide_no_nan(size, tf.reduce_sum(weights))
        return tf.ones([], values.dtype)


def refuse_other_length(weights: tf.Tensor, values: tf.Tensor) -> None:
    """Raises a ValueError unless there is a weight for each example, or one for all."""
    examples, count = values.shape[0], weights.shape[0] if weights.shape.rank else 1
    if None not in (examples, count) and count not in (1, examples):
        raise ValueError(
            f"`sample_weight` must have one value for each of the {examples} examples. "
            f"Received shape: {tuple(weights.shape)}"
        )


def _of_one_rank(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Two tensors whose ranks differ by a last axis of size 1, without that axis or both with it.

    Others are left to broadcasting, as in Keras.
    """
    if a.shape.rank == b.shape.rank + 1 and a.shape[-1] == 1:
        return (a, b[..., tf.newaxis]) if b.shape.rank == 1 else (a[..., 0], b)
    if b.shape.rank == a.shape.rank + 1 and b.shape[-1] == 1:
        return (a[..., tf.newaxis], b) if a.shape.rank == 1 else (a, b[..., 0])
    return a, b
