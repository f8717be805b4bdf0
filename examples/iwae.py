"""The importance-weighted bound of Burda et al. 2016, for models whose cost is `-log w`."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

import relax_tf
from relax_tf.layers.passes import EvaluationPass

_ROWS = 10_000  # samples in memory at once


class Bounds(NamedTuple):
    """Means over the images, in nats; `elbo` averages `log w` over the samples of `bound`."""

    elbo: float
    bound: float


def importance_weighted_bound(
    model: relax_tf.RelaxModel, images: np.ndarray, num_samples: int = 100
) -> Bounds:
    """`E log (1/K) sum_k p(x, b_k) / q(b_k|x)` and the ELBO, from K samples for each image.

    Args:
        model: its `compute_cost` must be `-log w = log q(b|x) - log p(x, b)`: KL terms taken at
            the samples, not in closed form.
        images: `[N, pixels]`.
        num_samples: K.

    Returns:
        `Bounds`. The samples come from the layers' own generators, whose state moves on.

    Raises:
        ValueError: if `num_samples` is below 1 or a layer's KL is closed form.
    """
    if num_samples < 1:
        raise ValueError(f"`num_samples` must be at least 1. Received: {num_samples}")
    _refuse_closed_form(model)

    @tf.function(input_signature=[tf.TensorSpec([None, *images.shape[1:]], tf.float32)])
    def log_weights(x: tf.Tensor) -> tf.Tensor:
        rows = tf.repeat(x, num_samples, axis=0)
        with EvaluationPass() as evaluation:
            y_pred = model(rows, training=False)
        cost = model.compute_cost(rows, rows, y_pred, evaluation.latents)
        return -tf.reshape(cost, [-1, num_samples])

    at_once = max(1, _ROWS // num_samples)
    chunks = [
        log_weights(tf.convert_to_tensor(images[start : start + at_once])).numpy()
        for start in range(0, len(images), at_once)
    ]
    log_w = np.concatenate(chunks).astype(np.float64)
    bounds = np.logaddexp.reduce(log_w, axis=1) - np.log(num_samples)
    return Bounds(elbo=float(log_w.mean()), bound=float(bounds.mean()))


def _refuse_closed_form(model: relax_tf.RelaxModel) -> None:
    for layer in model.layers:
        if getattr(layer, "prior", None) is not None and layer.kl != "sampled":
            raise ValueError(
                f"the bound needs the log-ratio at each sample. Use kl='sampled' in layer "
                f"{layer.name!r}. Received: kl={layer.kl!r}"
            )
