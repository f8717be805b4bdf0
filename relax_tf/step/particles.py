"""Multi-sample bounds of whole models: K joint particles run through all layers in one pass."""

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from relax_tf.estimators.estimate import Estimate, batch_mean, path_to_theta, second_moment
from relax_tf.estimators.score_function import score_function_gradient
from relax_tf.step.folding import fold, unfold
from relax_tf.layers import StochasticLayer
from relax_tf.layers.passes import Latent


def shared_particles(layers: Iterable[StochasticLayer], sample_weight: Any) -> int:
    """K, if the layers share K joint particles (`vimco`); 1 if each is estimated by itself.

    Raises:
        ValueError: if some layers estimate a bound and others do not, or one with another K; if
            a layer's KL is closed form, since a bound needs the log-ratio of each particle; or if
            examples are weighted, since a weight inside a bound is not a weight of the bound.
    """
    layers = list(layers)
    kinds = {layer.name: (layer.estimator.joint, layer.estimator.num_samples) for layer in layers}
    joint = [layer for layer in layers if layer.estimator.joint]
    if not joint:
        return 1
    if len(set(kinds.values())) > 1:
        found = {layer.name: _description(layer.estimator) for layer in layers}
        raise ValueError(
            "the multi-sample bound of 'vimco' needs all stochastic layers of a model to share K "
            "joint particles: give every layer 'vimco' with the same `num_samples`. "
            f"Received: {found}"
        )
    for layer in joint:
        if layer.prior is not None and layer.kl == "analytic":
            raise ValueError(
                f"layer {layer.name!r} has kl='analytic', but the multi-sample bound of 'vimco' "
                "needs the log-ratio of each particle. Use kl='sampled'."
            )
    if sample_weight is not None:
        raise ValueError(
            "`sample_weight` (or `class_weight`) is not supported with 'vimco': a weight of the "
            "cost of each particle would not weigh the bound."
        )
    return joint[0].estimator.num_samples


def _description(estimator: Any) -> str:
    return f"{type(estimator).__name__}(num_samples={estimator.num_samples})"


def estimate_particles(latent: Latent, values: tf.Tensor) -> tuple[Estimate, tf.Tensor]:
    """The estimate of one layer, and its path to theta, a scalar 0 with the gradient.

    Particles meet in the bound only, so each has its own theta, row by row. The `Estimate` has
    the sum of their gradients: that of the bound in a shift of theta that all particles share.

    Args:
        latent: of the pass of `[K * batch]` rows.
        values: the cost of each particle, `[K, batch]`.
    """
    estimator, copies = latent.layer.estimator, values.shape[0]
    detached = tf.stop_gradient(values)
    credits = fold(estimator.credits(detached))
    b = tf.stop_gradient(latent.sample)
    rows = score_function_gradient(latent.dist.detached(), b, credits)
    gradient = tf.nest.map_structure(lambda row: tf.reduce_sum(unfold(row, copies), 0), rows)
    gradient = tf.nest.map_structure(tf.stop_gradient, gradient)
    cost = estimator.combine(values)
    path = path_to_theta(latent.dist, rows, cost)
    moment = second_moment(gradient)
    estimate = Estimate(
        sample=unfold(latent.sample, copies),
        cost=cost,
        gradient=gradient,
        surrogate=batch_mean(cost) + path,
        second_moment=moment,
        control_variate_loss=moment,
    )
    return estimate, path
