"""Multi-sample bounds of whole models: K joint particles, each a sample of all layers."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from relax_tf.estimators.estimate import Estimate, batch_mean, path_to_theta, second_moment
from relax_tf.estimators.score_function import score_function_gradient
from relax_tf.layers import StochasticLayer
from relax_tf.layers.passes import Call
from relax_tf.step.folding import fold, tile, unfold
from relax_tf.step.hard_pass import Batch, Outcome, Seeds, TrainingPass, run_hard, run_with_cost


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


def run_particles(
    model: Any, hard: TrainingPass, seeds: Seeds, batch: Batch, particles: int
) -> tuple[list[list[Call]], Outcome, tf.Tensor]:
    """K passes with samples of their own, upstream as downstream, and all else as in the first.

    All carry gradients to the model's parameters, and the first alone moves its state. One pass of
    a batch K times as long does instead where that is known to be the same.

    Returns:
        The calls of each pass (of the long batch: of one pass), the outcome of the first for the
        user's batch, and the cost of each particle, `[K, batch]`.
    """
    if model._rows_are_alike:
        outcome = run_hard(model, hard, Batch(*tile(batch, particles)))
        first = keras.tree.map_structure(lambda r: unfold(r, particles)[0], outcome.y_pred)
        values = unfold(outcome.f_b, particles)
        return [hard.calls], outcome._replace(y_pred=first, f_b=values[0]), values
    outcome = run_hard(model, hard, batch)
    state = [(variable, value) for variable, value in outcome.state if not variable.trainable]
    passes, values = [hard.calls], [outcome.f_b]
    for _ in range(particles - 1):
        another = TrainingPass(seeds)
        with keras.StatelessScope(state, collect_losses=True):
            values.append(run_with_cost(model, another, batch)[1])
        passes.append(another.calls)
    return passes, outcome, tf.stack(values)


def estimate_particles(calls: Sequence[Call], values: tf.Tensor) -> tuple[Estimate, tf.Tensor]:
    """The estimate of one layer, and its path to theta, a scalar 0 with the gradient.

    Particles meet in the bound only, so each has its own theta. The `Estimate` has the sum of
    their gradients: that of the bound in a shift of theta that all particles share.

    Args:
        calls: of the layer in each pass, or in one pass of `[K * batch]` rows.
        values: the cost of each particle, `[K, batch]`.
    """
    estimator, copies = calls[0].layer.estimator, values.shape[0]
    values = tf.cast(values, calls[0].dist.dtype)  # layers of one model may have several
    credits = estimator.credits(tf.stop_gradient(values))
    credits = tf.unstack(credits) if len(calls) == copies else [fold(credits)]
    cost = estimator.combine(values)
    path, gradients = tf.zeros([], cost.dtype), []
    for call, credit in zip(calls, credits, strict=True):
        b = tf.stop_gradient(call.sample)
        of_pass = score_function_gradient(call.dist.detached(), b, credit)
        path += path_to_theta(call.dist, of_pass, cost)
        gradients.append(tf.nest.map_structure(tf.stop_gradient, of_pass))

    def all_particles(*parts):
        return tf.stack(parts) if len(parts) == copies else unfold(parts[0], copies)

    gradient = tf.nest.map_structure(lambda *g: tf.reduce_sum(all_particles(*g), 0), *gradients)
    moment = second_moment(gradient)
    estimate = Estimate(
        sample=all_particles(*(call.sample for call in calls)),
        cost=cost,
        gradient=gradient,
        surrogate=batch_mean(cost) + path,
        second_moment=moment,
        control_variate_loss=moment,
    )
    return estimate, path
