"""The hard pass: the model is called as Keras would call it, and every call leaves its record."""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from relax_tf.control_variates import is_control_variate
from relax_tf.distributions.noise import fold_in
from relax_tf.estimators.estimate import ONE_COST_PER_EXAMPLE, check_cost
from relax_tf.keras_internals import all_layers
from relax_tf.layers.passes import Pass
from relax_tf.validation import as_long_as


class Batch(NamedTuple):
    """`x`, `y` and `sample_weight`, as `fit` passes them on."""

    x: Any
    y: Any
    sample_weight: Any


def as_batch(x: Any, y: Any = None, sample_weight: Any = None) -> Batch:
    """The batch as `fit` would make it of arrays, whose floats it casts."""

    def tensor(value):
        if value is None or tf.is_tensor(value):
            return value
        value = tf.convert_to_tensor(value)
        return tf.cast(value, keras.config.floatx()) if value.dtype.is_floating else value

    return keras.tree.map_structure(tensor, Batch(x, y, sample_weight))


class Seeds:
    """All seeds of one step. Each is asked for here, and no two are equal.

    A layer's own generator moves once a step, at the layer's first request; what distinguishes the
    requests of a step, of whichever layers, is their number.
    """

    def __init__(self):
        self._roots = {}
        self._requests = 0

    def next(self, layer: Any) -> tf.Tensor:
        """A stateless seed that depends on the layer's generator."""
        if id(layer) not in self._roots:
            self._roots[id(layer)] = layer.next_seed()
        self._requests += 1
        return fold_in(self._roots[id(layer)], self._requests)


class TrainingPass(Pass):
    """Draws as the estimators want it.

    Args:
        seeds: of this step.
        tape: watches z where an estimator backpropagates through it, if given.
    """

    trains = True

    def __init__(self, seeds: Seeds, tape: tf.GradientTape | None = None):
        super().__init__()
        self._seeds = seeds
        self._tape = tape

    def __enter__(self):
        self._graph = _current_graph()
        return super().__enter__()

    def _choose(self, index, layer, dist):
        if _current_graph() is not self._graph:
            raise ValueError(
                f"layer {layer.name!r} was called inside a symbolic loop, a branch or a "
                "tf.function of the model (keras.layers.RNN, tf.map_fn, tf.while_loop, tf.cond), "
                "where its sample cannot be seen by the estimators, whichever they are. Use "
                "`unroll=True` (keras.layers.RNN), a loop or an `if` in Python, or take the "
                "tf.function away: Keras compiles the whole step."
            )
        if not _gradients_are_recorded():
            raise ValueError(
                f"layer {layer.name!r} was called inside tf.recompute_grad, keras.remat or a "
                "RematScope, which would call it again, with another sample, to compute gradients. "
                "Take it out of there."
            )
        eps = dist.noise(self._seeds.next(layer))
        draw = dist.from_noise(eps)
        if self._tape is not None and not layer.estimator.needs_cost:
            self._tape.watch(draw.z)
        return eps, draw.z, layer.estimator.emit(dist, draw)


class _BuildingPass(Pass):
    """For the symbolic call that builds a model: the shapes are all that counts."""

    def _choose(self, index, layer, dist):
        return None, None, dist.mean()


def run(model: Any, a_pass: Pass, x: Any, training: bool) -> Any:
    """The model's output in a pass."""
    with a_pass:
        takes_training = "training" in model.call_signature_parameters
        return model(x, training=training) if takes_training else model(x)


State = list[tuple[keras.Variable, tf.Tensor]]


class Outcome(NamedTuple):
    """What a training pass yields.

    The model's output, the cost of each example `[batch]`, the `add_loss` terms, the values that
    variables had before, through which no gradient reaches the model, and whether other than
    stochastic layers drew random numbers.
    """

    y_pred: Any
    f_b: tf.Tensor
    added: list[tf.Tensor]
    state: State
    draws_masks: bool


class LiveScope(keras.StatelessScope):
    """Notes `add_loss` terms and what is assigned; otherwise it is as if it were not there.

    Variables are read and assigned as in any Keras model, so whatever a layer does with its own, in
    a `tf.function`, in `tf.recompute_grad` or by assignment to a weight, works as it does there.

    Attributes:
        losses: the `add_loss` terms.
        before: variables that were assigned, also those that Keras does not track (the states of
            recurrent layers), with their values from before.
    """

    def __init__(self):
        super().__init__(collect_losses=True)
        self.before: State = []

    def add_update(self, update):
        variable, value = update
        super().__exit__(None, None, None)
        if not any(variable is noted for noted, _ in self.before):
            self.before.append((variable, tf.identity(variable.value)))
        variable.assign(value)
        super().__enter__()


def run_hard(model: Any, hard: TrainingPass, batch: Batch) -> Outcome:
    """The hard pass. Its state is what replays start from: where the hard pass started.

    Each variable is read once for all replays. Where they read anew, TensorFlow's graph optimizer
    (2.21) was seen to let a read slip behind the optimizer's update.
    """
    tracked = [(v, tf.convert_to_tensor(v.value)) for v in model.variables]
    with LiveScope() as scope:
        y_pred, f_b = run_with_cost(model, hard, batch)
    for call in hard.calls:
        f_b = as_long_as(f_b, call.dist.first_theta, ONE_COST_PER_EXAMPLE)
    known = {id(variable) for variable, _ in tracked}
    state = [*tracked, *((v, value) for v, value in scope.before if id(v) not in known)]
    state = [(variable, tf.stop_gradient(value)) for variable, value in state]
    own = {id(layer.seed_generator.state) for layer in model._stochastic_layers()}
    draws_masks = any(
        not tf.as_dtype(variable.dtype).is_floating and id(variable) not in own
        for variable, _ in scope.before
    )
    return Outcome(y_pred, f_b, scope.losses, state, draws_masks)


def run_with_cost(model: Any, a_pass: Pass, batch: Batch) -> tuple[Any, tf.Tensor]:
    """Output and cost `[batch]` of a training pass.

    The cost is part of the pass: a stochastic layer that it calls is estimated like any other.
    """
    y_pred = run(model, a_pass, batch.x, training=True)
    with a_pass:
        cost = model.compute_cost(
            batch.x, batch.y, y_pred, a_pass.latents, sample_weight=batch.sample_weight
        )
        cost = a_pass.total(cost)
    if not a_pass.calls:
        raise ValueError(
            f"RelaxModel {model.name!r} called no stochastic layer: there is nothing to estimate. "
            "Add one, such as relax_tf.StochasticBinaryLayer, or use a keras.Model."
        )
    dist = a_pass.calls[0].dist
    f_b = check_cost(cost, a_pass.calls[-1].dist.shape[:1], dist.dtype)
    for call in a_pass.calls:
        if not call.dist.shape[:1].is_compatible_with(f_b.shape):
            raise ValueError(
                f"the stochastic layer {call.name!r} was called on a batch of "
                f"{call.dist.shape[0]}, but the cost is one of {f_b.shape[0]} examples: its "
                "samples would be credited with other examples' costs. Keep the batch axis, and "
                "give the layer what belongs "
                "to one example as further axes, [batch, n, features]."
            )
    return y_pred, f_b


def penalties(model: keras.Model, of_control_variates: bool) -> list[tf.Tensor]:
    """The weight regularisers' losses of one of the two groups."""
    return [
        variable.regularizer(variable)
        for variable in model.trainable_weights
        if variable.regularizer is not None and is_control_variate(variable) == of_control_variates
    ]


def ensure_built(model: Any, x: Any) -> None:
    """Builds a subclassed model by a symbolic call: a pass must not see Keras doing it."""
    if not all(layer.built for layer in all_layers(model)):

        def symbol(t):
            return None if t is None else keras.KerasTensor(t.shape, t.dtype)

        with _BuildingPass():
            model(keras.tree.map_structure(symbol, x))


def _gradients_are_recorded() -> bool:
    with tf.GradientTape() as tape:
        one = tf.ones([])
        tape.watch(one)
        two = one + one
    return tape.gradient(two, one) is not None


def _current_graph() -> tf.Graph | None:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
