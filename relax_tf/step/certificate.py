"""The certificate: what makes a model's estimates right, measured on one batch.

Every unbiased estimator of this library takes for granted that

(a) a replay at the drawn sample gives back the cost of the hard pass,
(b) changing one example's sample changes no other example's cost,
(c) where an estimator relies on the derivative of the cost, that is the derivative of the cost.

No inspection of a model's layers can promise that for every model, but on a batch it can be
measured, and a model that fails is refused with the numbers. `fit` does so on its first batch.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from relax_tf.control_variates import is_control_variate
from relax_tf.distributions.base import over_event, sum_event
from relax_tf.distributions.noise import fold_in
from relax_tf.estimators.black_box import graph_calls_python
from relax_tf.layers.passes import Call
from relax_tf.step.folding import unfold
from relax_tf.step.hard_pass import Batch, Seeds, State, TrainingPass, ensure_built, run_hard
from relax_tf.step.replay import Replays

_SPLITS = 3  # random halves of the batch, each changed while the other is watched
_NODES = (8, 16, 32, 64)  # of the quadratures along a path
_ROUNDING = 64  # roundings of a cost that do not count


def certify(model: Any, batch: Batch) -> None:
    """Measures (a), (b) and (c) on a batch, and whether the rows of a batch are treated alike.

    Leaves no trace in variables. Weights that are all zero are lifted from it meanwhile: a model
    whose last layer starts at zero would pass, since its cost does not depend on anything yet.

    Raises:
        ValueError: if one of the three does not hold. It names the property, the layer, the
            numbers, likely causes and what to do.
    """
    ensure_built(model, batch.x)
    before = [(variable, tf.identity(variable.value)) for variable in model.variables]
    probe = _Probe(model, batch)
    try:
        _lift_zeros(model)
        coupled = _check_replays_and_coupling(model, probe)
        _check_derivatives(probe, coupled)
        model._rows_are_alike = probe.rows_are_alike()
    finally:
        _assign(before)
        _assign(probe.untracked)


class _Probe:
    """Runs measurements on one batch, each from the same state and so with the same noise."""

    def __init__(self, model: Any, batch: Batch):
        self.model, self.batch = model, batch
        self.epsilon = _coarsest_epsilon(model)
        self.calls: list[Call] = []
        self.untracked: State = []  # state that is not in `model.variables`
        self._state = [(v, tf.identity(v.value)) for v in model.non_trainable_variables]

    def run(self, measurement: Callable, *arguments: Any) -> Any:
        """A measurement's result in NumPy. The first run traces it, unless the model is eager."""
        _assign(self._state)
        _assign(self.untracked)
        result, untracked = measurement(*arguments)
        if not self.untracked:
            self.untracked = list(zip(self._assigned, untracked, strict=True))
        return keras.tree.map_structure(lambda t: t.numpy(), result)

    def measurement(self, function: Callable) -> Callable:
        """`function(replays, seeds, f_b, *arguments)` behind a hard pass."""

        def measured(*arguments):
            seeds = Seeds()
            hard = TrainingPass(seeds)
            outcome = run_hard(self.model, hard, self.batch)
            if self.model.jit_compile and graph_calls_python():
                raise ValueError(
                    f"RelaxModel {self.model.name!r} is compiled with jit_compile=True, but XLA "
                    "cannot compile the Python code in it (tf.numpy_function, tf.py_function). "
                    "Compile with `jit_compile=False`."
                )
            self.calls = list(hard.calls)
            tracked = set(map(id, self.model.variables))
            untracked = [(v, value) for v, value in outcome.state if id(v) not in tracked]
            self._assigned = [variable for variable, _ in untracked]
            replays = Replays(self.model, self.batch, hard, outcome)
            result = function(replays, seeds, outcome.f_b, *arguments)
            return result, [value for _, value in untracked]

        return measured if self.model.run_eagerly else tf.function(measured, autograph=False)

    def rows_are_alike(self) -> bool:
        """Whether K passes of the batch may be one of a batch K times as long.

        They may if the longer batch gives each row the same cost and leaves the same state.
        """
        counts = [call.layer.estimator.num_samples for call in self.calls]
        if max(counts) < 3 and not any(call.layer.estimator.joint for call in self.calls):
            return False  # there is never more than one more sample

        def twice(replays, seeds, f_b):
            del seeds
            _, scope = replays.unchanged(copies=1)
            both, scope_of_both = replays.unchanged(copies=2)
            states = [
                (scope.get_current_value(v), scope_of_both.get_current_value(v))
                for v in self.model.non_trainable_variables
            ]
            return f_b, unfold(both, 2), states

        try:
            f_b, both, states = self.run(self.measurement(twice))
        except Exception:  # whatever a model does with a batch of another size
            return False
        allowed = _ROUNDING * self.epsilon * _size(f_b)
        return _difference(both, np.stack([f_b, f_b])) <= allowed and all(
            np.allclose(one, two, rtol=1e-4, atol=1e-6) for one, two in states
        )


def _check_replays_and_coupling(model: Any, probe: _Probe) -> set[int]:
    """(a) and (b). Returns the calls that couple examples and may: they backpropagate."""

    def concerned() -> list[tuple[int, Call]]:
        return [
            (index, call)
            for index, call in enumerate(probe.calls)
            if call.layer.estimator.needs_cost or call.layer.estimator.relies_on_derivative
        ]

    def measure(replays, seeds, f_b, split, opposite):
        n = tf.shape(f_b)[0]
        rank = tf.argsort(tf.argsort(tf.random.stateless_uniform([n], [split, 0])))
        changed = tf.math.logical_xor(2 * rank < n, opposite)
        costs = []
        for index, call in concerned():
            another = _another_sample(call, fold_in(seeds.next(call.layer), split))
            another = tf.where(over_event(changed, call.sample), another, call.sample)
            costs.append((replays.run(index, call.sample), replays.run(index, another)))
        return f_b, changed, costs

    measurement, coupled = probe.measurement(measure), set()
    for split, opposite in itertools.product(range(_SPLITS), (False, True)):
        f_b, changed, costs = probe.run(measurement, tf.constant(split), tf.constant(opposite))
        for (index, call), (repeated, altered) in zip(concerned(), costs, strict=True):
            noise = _difference(repeated, f_b)
            allowed = _ROUNDING * probe.epsilon * _size(f_b)
            if noise > allowed and call.layer.estimator.evaluations > 1:
                raise ValueError(_not_repeated(model, call, noise, allowed, f_b))
            allowed = 8 * noise + _ROUNDING * _epsilon(f_b.dtype) * _size(f_b)
            moved = _difference(altered[~changed], repeated[~changed])
            if moved > allowed:
                if call.layer.estimator.needs_cost:
                    raise ValueError(_coupled(model, call, moved, allowed, f_b))
                coupled.add(index)
    return coupled


def _another_sample(call: Call, seed: tf.Tensor) -> tf.Tensor:
    """A sample of the same support that differs, `H(z)` with most coordinates of z mirrored."""
    mirror = tf.random.stateless_uniform(tf.shape(call.z), seed) < 0.75
    return call.dist.harden(tf.where(tf.math.is_finite(call.z) & mirror, -call.z, call.z))


def _check_derivatives(probe: _Probe, coupled: set[int]) -> None:
    """(c): along a straight line between two samples the cost changes by its integrated slope.

    A difference quotient at one point would miss jumps, which are rare and far apart; over a whole
    path they add up. Gauss-Legendre quadrature of more and more nodes tells a slope that is wrong
    from one that is merely rough: the error of the latter shrinks.
    """
    relying = [i for i, call in enumerate(probe.calls) if call.layer.estimator.relies_on_derivative]
    if not relying:
        return

    def measure(replays, seeds, f_b, t):
        del f_b
        values = []
        for index in relying:
            call = probe.calls[index]
            estimator, dist = call.layer.estimator, call.dist
            start = tf.stop_gradient(dist.harden(call.z))
            end = tf.stop_gradient(_another_sample(call, seeds.next(call.layer)))
            emits = "relaxed" if estimator.needs_cost else "held"
            sample = start + tf.cast(t, start.dtype) * (end - start)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sample)
                f = replays.run(index, sample, emits)
            slope = tape.gradient(f, sample)
            if slope is None:  # the estimator says so itself, and what to do
                slope = tf.fill(tf.shape(sample), tf.cast(float("nan"), sample.dtype))
            values.append((f, sum_event(slope * (end - start))))
        return values

    measurement = probe.measurement(measure)
    at = functools.cache(lambda t: probe.run(measurement, tf.constant(t, tf.float32)))
    for position, index in enumerate(relying):
        call = probe.calls[index]
        if index in coupled:
            # Backpropagation through the sample serves all examples at once.
            path = lambda t, k=position: [values.sum(keepdims=True) for values in at(t)[k]]  # noqa: E731
        else:
            path = lambda t, k=position: at(t)[k]  # noqa: E731
        problem = _wrong_slope(probe, call, path)
        if problem:
            raise ValueError(problem)


def _wrong_slope(probe: _Probe, call: Call, at: Callable[[float], tuple]) -> str | None:
    """The message if `at(t)`, costs and slopes `[n]`, do not fit together on [0, 1]."""
    (f_0, _), (f_1, _) = at(0.0), at(1.0)
    change = f_1.astype(float) - f_0
    rounding = _ROUNDING * _epsilon(f_0.dtype) + 4 * probe.epsilon
    floor = rounding * max(_size(f_0), _size(f_1))
    integrals = []
    for count in _NODES:
        points, weights = np.polynomial.legendre.leggauss(count)
        slopes = [at(float(t))[1] for t in (points + 1) / 2]
        integral = np.tensordot(weights / 2, np.array(slopes, float), 1)
        if not np.isfinite(integral).all() or not np.isfinite(change).all():
            return None
        error = _rms(change - integral)
        if error <= 0.005 * (_rms(change) + _rms(integral)) + floor:
            return None
        integrals.append(integral)
        steps = [_rms(b - a) for a, b in itertools.pairwise(integrals)]
        factor = 2 if count == _NODES[-1] else 4
        if len(steps) > 1 and error > factor * max(steps[-2:]) + floor:
            return _wrong_slope_message(probe.model, call, _rms(change), _rms(integral), error)
    return None


def _assign(state: State) -> None:
    for variable, value in state:
        variable.assign(value)


# Numbers.

_EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}


def _epsilon(dtype: Any) -> float:
    return _EPSILON.get(tf.as_dtype(dtype).name, 0.0)


def _coarsest_epsilon(model: keras.Model) -> float:
    """Of the dtypes that the model's layers compute in."""
    return max(_epsilon(layer.compute_dtype) for layer in model._flatten_layers())


def _lift_zeros(model: keras.Model) -> None:
    """Small positive numbers for the model's weights that are all zero."""
    random = np.random.RandomState(0)
    for variable in model.trainable_variables:
        if not is_control_variate(variable) and not np.any(variable.numpy()):
            variable.assign(0.1 * np.abs(random.normal(size=variable.shape)))


def _size(f: np.ndarray) -> float:
    return float(np.abs(f[np.isfinite(f)]).max(initial=0))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference. Costs that are both not finite are not different."""
    a, b = a.astype(float), b.astype(float)
    finite = np.isfinite(a) & np.isfinite(b)
    if (np.isfinite(a) != np.isfinite(b)).any():
        return float("inf")
    return float(np.abs(a[finite] - b[finite]).max(initial=0))


# Messages.

_INSIST = (
    "To train it all the same, set `model.certify = False`: whether the estimates are right is "
    "then for you to know."
)


def _who(call: Call) -> str:
    return f"the stochastic layer {call.name!r} (estimator {call.layer.estimator.id!r})"


def _not_repeated(model, call, noise, allowed, f_b) -> str:
    return (
        f"RelaxModel {model.name!r} cannot be replayed: with all samples and all of Keras's "
        f"random masks as before, the cost differed by up to {noise:.3g} (costs are up to "
        f"{_size(f_b):.3g}, and rounding explains {allowed:.1g}). The estimator of {_who(call)} "
        "compares costs at several samples, and would take the difference for an effect of the "
        "sample. Likely causes: raw `tf.random` operations (use keras.layers.Dropout and the like, "
        "or keras.random with a keras.random.SeedGenerator), a random or stateful layer inside a "
        "`tf.function`, state in a tf.Variable or in Python, a call that ignores its inputs. Or "
        "use an estimator that needs one evaluation of the cost: 'relax', 'nvil' or 'reinforce'. "
        + _INSIST
    )


def _coupled(model, call, moved, allowed, f_b) -> str:
    return (
        f"RelaxModel {model.name!r} couples the examples of a batch: changing the samples of "
        f"{_who(call)} in some examples changed the cost of others by up to {moved:.3g} (costs are "
        f"up to {_size(f_b):.3g}, and rounding explains {allowed:.1g}). Each sample is credited "
        "with the cost of its own example, so the gradient estimates would be biased. Likely "
        "causes: batch normalisation in training mode downstream of the sample (use "
        "LayerNormalization, move it upstream, or freeze it), a contrastive loss or another one "
        "that compares the examples of a batch, a mask that is computed from samples, a mean over "
        "the batch in a layer or in `compute_cost`. Make the cost one of each example alone, or "
        "use an estimator that backpropagates through its sample ('concrete', 'straight_through', "
        "which are biased; 'reparameterization' for normal variables). " + _INSIST
    )


def _wrong_slope_message(model, call, change, integral, error) -> str:
    remedy = "'relax', 'nvil' or 'reinforce'" if call.dist.discrete else "'lax' or 'reinforce'"
    return (
        f"RelaxModel {model.name!r} has a cost that does not change as its derivative says: from "
        f"one sample of {_who(call)} to another it changed by {change:.3g}, its derivative adds up "
        f"to {integral:.3g}, and they are {error:.3g} apart. This estimator relies on the "
        "derivative, and would be biased. Likely causes: `tf.stop_gradient`, rounding, argmax, a "
        "comparison, a straight-through operation or a `tf.custom_gradient` between the sample and "
        f"the cost. Use an estimator that asks nothing of the cost: {remedy}. " + _INSIST
    )
