"""The estimates of a whole model on one batch: one hard pass, and replays of it."""

from typing import Any, NamedTuple

import tensorflow as tf

from relax_tf.estimators.estimate import Cost, Estimate, batch_mean, package, path_to_theta
from relax_tf.layers.passes import Call
from relax_tf.step.hard_pass import (
    Batch,
    Seeds,
    TrainingPass,
    ensure_built,
    penalties,
    run_hard,
)
from relax_tf.step.particles import estimate_particles, run_particles, shared_particles
from relax_tf.step.replay import Replays


class ModelEstimate(NamedTuple):
    """What `RelaxModel.estimate` returns.

    Attributes:
        estimates: an `Estimate` for each call of a stochastic layer, by name.
        surrogate: a scalar. Its value is the training loss, its gradient with respect to the
            model's parameters is the estimate.
        control_variate_loss: a scalar, the sum of what the control variates minimise. Its
            gradient reaches control-variate parameters only.
    """

    estimates: dict[str, Estimate]
    surrogate: tf.Tensor
    control_variate_loss: tf.Tensor


def estimate_batch(model: Any, batch: Batch) -> tuple[ModelEstimate, TrainingPass, Any]:
    """The estimates on one batch, the hard pass, and the model's output in it.

    The hard pass records what each stochastic layer drew; each layer's estimator turns the cost
    into a gradient at its theta, replaying the model where it needs the cost elsewhere; the
    surrogate carries those gradients to the weights.
    """
    ensure_built(model, batch.x)
    particles = shared_particles(model._stochastic_layers(), batch.sample_weight)
    seeds = Seeds()
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        hard = TrainingPass(seeds, tape)
        estimates, paths = {}, []
        if particles > 1:
            passes, outcome, values = run_particles(model, hard, seeds, batch, particles)
            for name, *calls in zip([call.name for call in hard.calls], *passes, strict=True):
                estimates[name], path = estimate_particles(calls, values)
                paths.append(path)
            f_b = next(iter(estimates.values())).cost
        else:
            outcome = run_hard(model, hard, batch)
            f_b = outcome.f_b
            replays = Replays(model, batch, hard, outcome)
            for index, call in enumerate(hard.calls):
                if call.layer.estimator.needs_cost:
                    seed = seeds.next(call.layer)
                    estimate = _estimate(call, f_b, replays.cost(index), seed)
                    estimates[call.name] = estimate
                    paths.append(path_to_theta(call.dist, estimate.gradient, estimate.cost))
        objective = summed(batch_mean(f_b), paths)
    estimates |= _pathwise_estimates(tape, objective, hard.calls, f_b)
    for call in hard.calls:
        call.layer.estimator.observe(tf.stop_gradient(f_b), tf.stop_gradient(call.context))
    losses = [estimate.control_variate_loss for estimate in estimates.values()]
    result = ModelEstimate(
        {call.name: estimates[call.name] for call in hard.calls},
        summed(objective, [*outcome.added, *penalties(model, of_control_variates=False)]),
        summed(losses[0], [*losses[1:], *penalties(model, of_control_variates=True)]),
    )
    return result, hard, outcome.y_pred


def _estimate(call: Call, f_b: tf.Tensor, cost: Cost, seed: tf.Tensor) -> Estimate:
    """The estimate of one call of a layer; of several samples the hard pass has the first."""
    estimator, dist, context = call.layer.estimator, call.dist, call.context
    f_b = tf.cast(f_b, dist.dtype)  # layers of one model may have several
    if estimator.num_samples == 1:
        return estimator.estimate_at(dist, call.draw, call.sample, f_b, cost, context, seed)
    draw = estimator.complete_draw(dist.detached(), call.eps, seed)
    others = tf.stop_gradient(cost(draw.b[1:]))
    values = tf.concat([tf.stop_gradient(f_b)[tf.newaxis], others], 0)
    estimate = estimator.estimate_at(dist, draw, draw.b, values, cost, context, seed)
    # The model's parameters learn from the hard pass.
    direct = batch_mean(f_b)
    return estimate._replace(surrogate=estimate.surrogate + direct - tf.stop_gradient(direct))


def _pathwise_estimates(
    tape: tf.GradientTape, objective: tf.Tensor, calls: list[Call], f_b: tf.Tensor
) -> dict[str, Estimate]:
    """The estimates of layers whose gradient is ordinary backpropagation through their sample.

    Theirs is the gradient of the mean cost, estimates of the layers below and above included.
    """
    pathwise = [call for call in calls if not call.layer.estimator.needs_cost]
    gradients = tape.gradient(objective, [call.z for call in pathwise])
    estimates = {}
    for call, df_dz in zip(pathwise, gradients, strict=True):
        df_dz = None if df_dz is None else tf.cast(tf.size(f_b), df_dz.dtype) * df_dz
        gradient = call.layer.estimator.estimate_on_path(call.dist, call.z, f_b, df_dz)
        estimate = package(call.dist, call.sample, f_b, gradient)
        # Here f(b) itself leads backpropagation through the sample.
        estimates[call.name] = estimate._replace(surrogate=batch_mean(f_b))
    return estimates


def summed(value: tf.Tensor, others: list[tf.Tensor]) -> tf.Tensor:
    """The scalar and the others: of a layer's added loss with axes its sum, as in Keras."""
    return tf.add_n([value, *(tf.reduce_sum(tf.cast(o, value.dtype)) for o in others)])
