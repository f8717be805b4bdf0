"""The cost of each example where `compute_cost` is not overridden: compiled losses and KLs."""

from typing import Any

import keras
import tensorflow as tf

from relax_tf import losses
from relax_tf.keras_internals import compile_loss
from relax_tf.layers.passes import Latent, active_pass


def default_cost(
    model: Any, y: Any, y_pred: Any, latents: dict[str, Latent], sample_weight: Any
) -> tf.Tensor:
    """The compiled losses, weighted by `loss_weights`, plus every layer's KL, `[batch]`.

    Args:
        model: a `RelaxModel`.
        y, y_pred, latents, sample_weight: as `RelaxModel.compute_cost` is given them.
    """
    kls = [latent.kl for latent in latents.values() if latent.kl is not None]
    parts = []
    compiled = compile_loss(model)
    if compiled is not None:
        parts.append(losses.per_example(compiled, y, y_pred, sample_weight))
        _name_compiled_loss(model, parts[0], alone=not kls)
        if kls and not model._overrides("compute_cost"):
            model._averaged_over = losses.averaged_over(compiled, y_pred)
        if any(layer.estimator.joint for layer in model._stochastic_layers()):
            losses.refuse_sums(compiled)
    elif kls and y is not None and not model._overrides("compute_cost"):
        raise ValueError(
            f"model {model.name!r} has no loss: the KL alone would be its cost, and y would be "
            "ignored. Compile it with a loss, `compile(..., loss=...)`, or override "
            "`compute_cost`; pass no y if the KL alone is meant. Received: loss=None"
        )
    if kls:
        parts.append(_weighted(tf.add_n(kls), sample_weight))
    if not parts:
        raise ValueError(
            f"model {model.name!r} has no cost: compile it with a `loss`, give a stochastic "
            "layer a `prior`, or override `compute_cost`."
        )
    return tf.add_n([tf.cast(part, parts[-1].dtype) for part in parts])


def _name_compiled_loss(model: Any, loss: tf.Tensor, alone: bool) -> None:
    """Has the compiled loss logged, if it is one and not the whole cost.

    Of several Keras logs each.
    """
    current, whole = active_pass(), alone and not model._overrides("compute_cost")
    if current is not None and not whole and not compile_loss(model).metrics:
        current.terms["compiled_loss"] = loss


def _weighted(kl: tf.Tensor, sample_weight: Any) -> tf.Tensor:
    """The KL times the example's weight; with one weight for each output, times their mean."""
    weights = [weight for weight in keras.tree.flatten(sample_weight) if weight is not None]
    for weight in weights:
        if weight.shape.rank > 1 and weight.shape[1:].num_elements() != 1:
            raise ValueError(
                "`sample_weight` must have one value per example, shape [batch], in a model with "
                f"KL terms. Received shape: {tuple(weight.shape)}"
            )
        losses.refuse_other_length(weight, kl)
    if not weights:
        return kl
    flat = [tf.reshape(tf.cast(weight, kl.dtype), [-1]) for weight in weights]
    return kl * tf.add_n(flat) / len(flat)
