"""The certificate: what makes a model's estimates right, measured on one batch.

Every unbiased estimator of this library takes for granted that

(a) a replay at the drawn sample gives back the cost of the hard pass,
(b) changing one example's sample changes no other example's cost,
(c) where an estimator relies on the derivative of the cost, that is the derivative of the cost,
(d) no loss that a layer adds (`add_loss`, activity regularisers) depends on a sample,
(e) the methods of a distribution agree with each other.

No inspection of a model's layers can promise that for every model, but on a batch it can be
measured, and a model that fails is refused with the numbers. `fit` does so on its first batch and
on some later ones. `coupling` measures (a) and (b), `cross_slopes` (b) where that sees nothing,
`slopes` (c), `added_losses` (d), `own_distributions` (e) of classes that are not the library's,
and `networks` (b) and (c) of the networks of control variates.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from relax_tf.control_variates import is_control_variate
from relax_tf.estimators.black_box import graph_calls_python
from relax_tf.layers.passes import Call
from relax_tf.step.added_losses import check_added_losses
from relax_tf.step.coupling import check_replays_and_coupling
from relax_tf.step.cross_slopes import check_cross_slopes
from relax_tf.step.folding import unfold
from relax_tf.step.gates import lift
from relax_tf.step.hard_pass import Batch, Seeds, State, TrainingPass, ensure_built, run_hard
from relax_tf.step.networks import check_networks
from relax_tf.step.own_distributions import check_distributions
from relax_tf.step.replay import Replays
from relax_tf.step.rounding import (
    ROUNDING,
    coarsest_epsilon,
    epsilon,
    relative_difference,
    without_tensor_float_32,
)
from relax_tf.step.slopes import check_derivatives


class Certificate(NamedTuple):
    """What was found of a model that passes.

    Whether the batch could tell: (b) takes two examples, and all of it costs that are finite and
    not all zero; the shapes of the model's output, where known; the names of the cost's terms.
    """

    conclusive: bool
    y_pred: Any
    terms: list[str]


@without_tensor_float_32()
def certify(model: Any, batch: Batch) -> Certificate:
    """Measures (a) to (e) on a batch, and which short cuts the model allows.

    Leaves no trace in variables. Weights that are all but zero are lifted from it meanwhile: a
    model whose last layer starts at zero, or with a gate that is still shut, would pass, since its
    cost does not depend on much yet.

    Raises:
        ValueError: if one of the five does not hold. It names the property, the layer, the
            numbers, likely causes and what to do.
    """
    ensure_built(model, batch.x)
    before = [(variable, tf.identity(variable.value)) for variable in model.variables]
    probe = None
    try:
        lift(v for v in model.variables if not is_control_variate(v))
        probe = Probe(model, batch)
        f_b, coupled, random = check_replays_and_coupling(probe)
        check_cross_slopes(probe, f_b)
        check_derivatives(probe, coupled, random)
        check_added_losses(probe, f_b)
        check_networks(probe)
        check_distributions(probe)
        model._rows_are_alike = probe.rows_are_alike()
    finally:
        assign(before)
        assign(probe.untracked if probe else [])
    conclusive = len(f_b) > 1 and bool(np.any(f_b[np.isfinite(f_b)]))
    return Certificate(conclusive, probe.y_pred, probe.terms)


class Probe:
    """Runs measurements on one batch, each from the same state.

    Attributes:
        model, batch: what is measured.
        calls, terms, y_pred: of the last hard pass; of the output the shapes.
        adds_losses: whether a layer added any loss in it.
        untracked: state that is not in `model.variables`.
    """

    def __init__(self, model: Any, batch: Batch):
        self.model, self.batch = model, batch
        self.epsilon = coarsest_epsilon(model)
        self.calls: list[Call] = []
        self.terms: list[str] = []
        self.y_pred: Any = None
        self.adds_losses = False
        self.untracked: State = []
        self._state = [(v, tf.identity(v.value)) for v in model.non_trainable_variables]
        self._draws_masks = False

    def run(self, measurement: Callable, *arguments: Any, noise: int = 0) -> Any:
        """A measurement's result in NumPy, under the noise of this number.

        The first run traces the measurement, unless the model is eager.
        """
        assign([*self._state, *self.untracked])
        for layer in self.model._stochastic_layers():
            state = layer.seed_generator.state
            state.assign(state.numpy() + np.array([0, noise]))
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
                warnings.warn(  # as Keras does of layers that XLA cannot compile
                    f"RelaxModel {self.model.name!r} has Python code in its pass, which XLA cannot "
                    "compile (tf.numpy_function, tf.py_function). Proceeding with "
                    "`jit_compile=False`.",
                    stacklevel=2,
                )
                self.model.jit_compile = False
            self.calls, self.terms = list(hard.calls), list(hard.terms)
            self.y_pred = _shapes(outcome.y_pred)
            self._draws_masks = outcome.draws_masks
            self.adds_losses = bool(outcome.added)
            tracked = set(map(id, self.model.variables))
            untracked = [(v, value) for v, value in outcome.state if id(v) not in tracked]
            self._assigned = [variable for variable, _ in untracked]
            replays = Replays(self.model, self.batch, hard, outcome)
            result = function(replays, seeds, outcome.f_b, *arguments)
            return result, [value for _, value in untracked]

        if self.model.run_eagerly:
            return measured
        compiled = tf.function(measured, autograph=False)
        # Of calls that trace, as each of these does once, TensorFlow warns at the fifth.
        return lambda *arguments: compiled.get_concrete_function(*arguments)(*arguments)

    def rounding(self, f_b: np.ndarray) -> float:
        """Of a number that a row of the batch is computed to, of float32 at the coarsest."""
        return max(epsilon(f_b.dtype), min(self.epsilon, epsilon("float32")))

    def repeats(self, f_b: np.ndarray) -> float:
        """The relative difference between two passes that do the same: hardly any.

        In half precision what is rounded the other way in one of them, a part of a rounding of all.
        """
        return max(ROUNDING * self.rounding(f_b), 0.25 * self.epsilon)

    def rows_are_alike(self) -> bool:
        """Whether K passes of the batch may be one of a batch K times as long.

        They may if no layer draws masks or noise, which a longer batch has others of, and if the
        longer batch gives each row the same cost and leaves the same state. Where it takes the
        place of the hard pass (`vimco`), there may be no added losses and no other state either.
        """
        counts = [call.layer.estimator.num_samples for call in self.calls]
        joint = any(call.layer.estimator.joint for call in self.calls)
        if max(counts) < 3 and not joint:
            return False  # there is never more than one more sample
        if self._draws_masks or (joint and (self.adds_losses or self._assigned)):
            return False

        def twice(replays, seeds, f_b):
            del seeds
            _, scope = replays.unchanged(copies=1)
            both, scope_of_both = replays.unchanged(copies=2)
            states = [
                (scope.get_current_value(v), scope_of_both.get_current_value(v))
                for v, _ in self._state
            ]
            return f_b, unfold(both, 2), states

        try:
            f_b, both, states = self.run(self.measurement(twice))
        except Exception:  # whatever a model does with a batch of another size
            return False
        once = np.stack([f_b, f_b], 1)
        alike = relative_difference(both.T, once) <= self.repeats(f_b)
        return bool(alike.all()) and all(
            _same_change(was.numpy(), *now)
            for (_, was), now in zip(self._state, states, strict=True)
        )


def _same_change(was: np.ndarray, one: np.ndarray, two: np.ndarray) -> bool:
    """Whether two values are alike, and by how much they differ from the one before."""
    was, one, two = (value.astype(np.float64) for value in (was, one, two))
    changed = np.isclose(one - was, two - was, rtol=1e-4, atol=1e-6 * (1 + np.abs(was)))
    return changed.all() and np.allclose(one, two, rtol=1e-4, atol=1e-6)


def _shapes(outputs: Any) -> Any:
    """Symbolic tensors like these; None if one is no tensor or of unknown rank."""
    for output in keras.tree.flatten(outputs):
        if not tf.is_tensor(output) or output.shape.rank is None:
            return None
    return keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, t.dtype), outputs)


def assign(state: State) -> None:
    for variable, value in state:
        variable.assign(value)
