"""The estimates of a whole model on one batch: one hard pass, and replays of it."""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from relax_tf.step.batch_coupling import refuse_batch_normalization
from relax_tf.control_variates import is_control_variate
from relax_tf.distributions import Draw
from relax_tf.estimators.estimate import (
    Estimate,
    batch_mean,
    check_cost,
    package,
    path_to_theta,
)
from relax_tf.step.folding import fold, folded, tile, unfold
from relax_tf.step.graph import may_depend
from relax_tf.layers import StochasticLayer
from relax_tf.step.particles import estimate_particles, shared_particles
from relax_tf.layers.passes import Latent, Pass, Replay, TrainingPass


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


def estimate_batch(
    model: Any, x: Any, y: Any, sample_weight: Any
) -> tuple[ModelEstimate, TrainingPass, Any]:
    """The estimates on one batch, the hard pass behind them, and the model's output in it.

    The hard pass records what each stochastic layer drew; each layer's estimator turns the cost
    into a gradient at its theta, replaying the model where it needs the cost elsewhere; the
    surrogate carries those gradients to the weights.
    """
    ensure_built(model, x)
    refuse_batch_normalization(model, x)
    particles = shared_particles(model._stochastic_layers(), sample_weight)
    x, y = tile((x, y), particles)
    # Each variable is read once, for the hard pass and all replays.
    state = [(variable, tf.convert_to_tensor(variable.value)) for variable in model.variables]
    frozen = [(variable, tf.stop_gradient(value)) for variable, value in state]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        hard = TrainingPass(tape)
        with PassScope(state) as scope, folded(particles):
            y_pred = run(model, hard, x, training=True)
            if not hard.latents:
                raise ValueError(
                    f"RelaxModel {model.name!r} called no stochastic layer: there is nothing to "
                    "estimate. Add one, such as relax_tf.StochasticBinaryLayer, or use a "
                    "keras.Model."
                )
            f_b = _cost(model, hard, x, y, y_pred, sample_weight)
        added = [*scope.losses, *penalties(model, of_control_variates=False)]
        estimates, paths = {}, []
        for index, (name, latent) in enumerate(hard.latents.items()):
            if latent.layer.estimator.joint:
                estimates[name], path = estimate_particles(latent, unfold(f_b, particles))
                paths.append(path)
            elif latent.layer.estimator.needs_cost:
                cost = _replayed_cost(model, hard, index, frozen, x, y, sample_weight)
                estimates[name] = _estimate_latent(latent, f_b, cost)
                paths.append(path_to_theta(latent.dist, estimates[name].gradient, f_b))
        if particles > 1:
            f_b = next(iter(estimates.values())).cost
            y_pred = keras.tree.map_structure(lambda rows: unfold(rows, particles)[0], y_pred)
        objective = tf.add_n([batch_mean(f_b), *paths])
    estimates |= _pathwise_estimates(tape, objective, hard.latents, f_b)
    scope.commit()
    for latent in hard.latents.values():
        latent.layer.estimator.observe(tf.stop_gradient(f_b), tf.stop_gradient(latent.context))
    result = ModelEstimate(
        {name: estimates[name] for name in hard.latents},
        summed(objective, added),
        summed(
            tf.add_n([estimate.control_variate_loss for estimate in estimates.values()]),
            penalties(model, of_control_variates=True),
        ),
    )
    return result, hard, y_pred


def _replayed_cost(model, hard: TrainingPass, index: int, frozen, x, y, sample_weight):
    """The cost as a function of one latent's sample, everything else as in the hard pass.

    The replay runs on the frozen state from before the hard pass: it draws the same dropout
    masks, moves no statistics, and no gradient of it reaches the model. Samples with a leading
    axis, `[K, batch, *event]`, run as one batch.
    """
    latent = list(hard.latents.values())[index]
    layer = latent.layer

    def is_downstream(other: StochasticLayer) -> bool:
        return may_depend(model, other, on=layer)

    def cost(sample: tf.Tensor) -> tf.Tensor:
        if sample.shape.rank > latent.dist.shape.rank:
            copies = sample.shape[0]
            return unfold(cost_of_rows(fold(sample), copies), copies)
        return cost_of_rows(sample, 1)

    def cost_of_rows(sample: tf.Tensor, copies: int) -> tf.Tensor:
        replay = Replay(hard, index, sample, layer.estimator.replay, copies, is_downstream)
        x_rows, y_rows, weight_rows = tile((x, y, sample_weight), copies)
        with keras.StatelessScope(frozen), folded(copies):
            y_pred = run(model, replay, x_rows, training=True)
            return _cost(model, replay, x_rows, y_rows, y_pred, weight_rows)

    return cost


def _cost(model: Any, a_pass: Pass, x, y, y_pred, sample_weight) -> tf.Tensor:
    cost = model.compute_cost(x, y, y_pred, a_pass.latents, sample_weight=sample_weight)
    dist = next(iter(a_pass.latents.values())).dist
    return check_cost(cost, dist.shape[:1], dist.dtype)


def _estimate_latent(latent: Latent, f_b: tf.Tensor, cost: Any) -> Estimate:
    """The estimate of one call of a layer; of several samples the hard pass has the first."""
    estimator, seed = latent.layer.estimator, latent.layer.next_seed()
    if estimator.num_samples == 1:
        draw = Draw(latent.sample, latent.z)
        return estimator.estimate_at(
            latent.dist, draw, latent.sample, f_b, cost, latent.context, seed
        )
    draw = estimator.complete_draw(latent.dist.detached(), latent.eps, seed)
    values = tf.concat([tf.stop_gradient(f_b)[tf.newaxis], cost(draw.b[1:])], 0)
    estimate = estimator.estimate_at(latent.dist, draw, draw.b, values, cost, latent.context, seed)
    # The model's parameters learn from the hard pass.
    direct = batch_mean(f_b)
    return estimate._replace(surrogate=estimate.surrogate + direct - tf.stop_gradient(direct))


def _pathwise_estimates(
    tape: tf.GradientTape, objective: tf.Tensor, latents: dict[str, Latent], f_b: tf.Tensor
) -> dict[str, Estimate]:
    """The estimates of layers whose gradient is ordinary backpropagation through their sample.

    Theirs is the gradient of the mean cost, estimates of the layers below and above included.
    """
    pathwise = {k: v for k, v in latents.items() if not v.layer.estimator.needs_cost}
    gradients = tape.gradient(objective, [latent.z for latent in pathwise.values()])
    examples = tf.cast(tf.size(f_b), f_b.dtype)
    estimates = {}
    for (name, latent), df_dz in zip(pathwise.items(), gradients, strict=True):
        df_dz = None if df_dz is None else examples * df_dz
        gradient = latent.layer.estimator.estimate_on_path(latent.dist, latent.z, f_b, df_dz)
        estimate = package(latent.dist, latent.sample, f_b, gradient)
        # Here f(b) itself leads backpropagation through the sample.
        estimates[name] = estimate._replace(surrogate=batch_mean(f_b))
    return estimates


def ensure_built(model: Any, x: Any) -> None:
    """Builds a subclassed model by a symbolic call: a pass must not see Keras doing it."""
    if not all(layer.built for layer in model._flatten_layers()):
        model(keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, t.dtype), x))


def run(model: Any, a_pass: Pass, x: Any, training: bool) -> Any:
    """The model's output in a pass."""
    with a_pass:
        return model(x, training=training) if model._call_has_training_arg else model(x)


class PassScope(keras.StatelessScope):
    """Collects `add_loss` terms and what a pass would assign (seeds, statistics) until `commit`.

    Replays come in between and must not see it. There is a second reason to read each variable
    once and to write last: where the replays of a step read variables anew, TensorFlow's graph
    optimizer (2.21) was seen to let such a read slip behind the optimizer's update.
    """

    def __init__(self, state: list[tuple[keras.Variable, tf.Tensor]] | None = None):
        super().__init__(state, collect_losses=True)
        self._assigned = {}

    def add_update(self, update):
        self._assigned[id(update[0])] = update[0]
        super().add_update(update)

    def commit(self) -> None:
        for variable in self._assigned.values():
            variable.assign(self.get_current_value(variable))


def penalties(model: keras.Model, of_control_variates: bool) -> list[tf.Tensor]:
    """The weight regularisers' losses of one of the two groups."""
    return [
        variable.regularizer(variable)
        for variable in model.trainable_weights
        if variable.regularizer is not None and is_control_variate(variable) == of_control_variates
    ]


def summed(value: tf.Tensor, others: list[tf.Tensor]) -> tf.Tensor:
    return tf.add_n([value, *(tf.cast(other, value.dtype) for other in others)])
