"""Properties (a) and (b) of the certificate: replays repeat, and examples are not coupled."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from relax_tf.distributions import OneHotCategorical
from relax_tf.distributions.base import Draw, over_event, stand_in_logit
from relax_tf.distributions.noise import fold_in
from relax_tf.layers.passes import Call
from relax_tf.step.replay import Replays
from relax_tf.step.rounding import (
    ALIKE,
    ROUNDING,
    difference,
    relative_difference,
    size,
)

INSIST = (
    "To train it all the same, set `model.certify = False`: whether the estimates are right is "
    "then for you to know."
)


def check_replays_and_coupling(probe: Any) -> tuple[np.ndarray, set[int], set[int]]:
    """(a) and (b).

    Half of the examples get another sample, and in the other half nothing may move: neither the
    cost, nor the theta and the KL of a later call (a cost may show the move of a theta only where
    it crosses a threshold), nor the slopes that an estimator uses. The halves are made by the bits
    of the examples' numbers, so that any two are in different halves of some split.

    What moves is told by running the same computation with and without the other samples: each
    example's rounding is then its own, and where a computation repeats to the last bit hardly any
    movement is excused. A coupling may be small beside a large cost.

    Args:
        probe: a `relax_tf.step.certificate.Probe`.

    Returns:
        The costs `[n]`; the calls that couple examples and may: they backpropagate; and those for
        which the cost is random by itself.

    Raises:
        ValueError: if a replay does not repeat, or if examples are coupled.
    """

    def measure(replays, seeds, f_b, split, opposite, unchanged):
        changed = half(f_b, split, opposite) & ~unchanged
        measured = []
        for index, call in concerned(probe):
            seed = fold_in(seeds.next(call.layer), split)
            z = tf.where(over_event(changed, call.z), mirrored(call, seed), call.z)
            measured.append(_measured(replays, index, call, z))
        return f_b, changed, replays.recorded(), measured

    measurement, coupled, number, f_b = probe.measurement(measure), set(), 0, None
    splits, noises, random = 1, {}, set()
    while number < 2 * splits:
        split, opposite = divmod(number, 2)
        arguments = tf.constant(split), tf.constant(bool(opposite))
        *_, recorded_before, as_before = probe.run(
            measurement, *arguments, tf.constant(True), noise=number
        )
        f_b, changed, recorded, measured = probe.run(
            measurement, *arguments, tf.constant(False), noise=number
        )
        splits = count_splits(f_b)
        number += 1
        exact = ALIKE * probe.rounding(f_b)
        for (index, call), before, after in zip(concerned(probe), as_before, measured, strict=True):
            noise = relative_difference(before.rows, recorded_before[index]).max(0, initial=0)
            noise = noises[index] = np.maximum(noise, noises.get(index, 0.0))
            noisy = noise > probe.repeats(f_b)
            if noisy.any() and call.layer.estimator.evaluations > 1:
                moved = difference(before.rows, recorded_before[index])[:, 0].max()
                raise ValueError(_not_repeated(probe.model, call, moved, f_b))
            if noisy.any():
                random.add(index)
            # Of numbers that are random by themselves nothing can be said here.
            allowed = np.where(noisy, np.inf, 8 * noise + ROUNDING * probe.rounding(f_b))
            # What two runs gave alike to the last bit.
            same = (recorded_before[index] == recorded[index]).all(0)
            tolerance = np.where(same, exact, allowed)
            moved = moved_by(before.rows, after.rows, changed, tolerance, same)
            if moved is None and len(after.sloped):
                moved = moved_by(before.sloped, after.sloped, changed, allowed.max(initial=0))
            if moved is not None:
                if call.layer.estimator.needs_cost:
                    raise ValueError(coupled_examples(probe.model, call, moved, f_b))
                coupled.add(index)
            if len(after.whole):
                differs = relative_difference(after.rows, after.whole) > allowed
                if differs.any():
                    probe.model._graph_tells = False
    return f_b, coupled, random


def concerned(probe: Any) -> list[tuple[int, Call]]:
    """The calls, with their numbers, whose estimators use the cost or its derivative."""
    return [
        (index, call)
        for index, call in enumerate(probe.calls)
        if call.layer.estimator.needs_cost or call.layer.estimator.relies_on_derivative
    ]


def crediting(probe: Any) -> list[tuple[int, Call]]:
    """The calls, with their numbers, whose samples are credited with their examples' costs."""
    return [(i, call) for i, call in enumerate(probe.calls) if call.layer.estimator.needs_cost]


class Measured(NamedTuple):
    """Rows (`Replays.rows`) of one call's replays at a sample, the drawn one or another.

    As they are; with all later calls, where the graph spares some; and of the replay that the
    estimator makes, with the cost's slopes, where it uses them.
    """

    rows: Any
    whole: Any = ()
    sloped: Any = ()


def _measured(replays: Replays, index: int, call: Call, z: tf.Tensor) -> Measured:
    estimator = call.layer.estimator
    sample = estimator.emit(call.dist, Draw(call.dist.harden(z), z))
    whole = replays.rows(index, sample, prune=False) if replays.prunes(index) else ()
    if not estimator.needs_cost or estimator.replay not in ("relaxed", "sloped"):
        return Measured(replays.rows(index, sample), whole)
    rows, slopes = replays.rows_and_slopes(index, replayed(call, z), estimator.replay)
    sloped = tf.concat([rows, slopes], -1)
    if estimator.replay == "relaxed":
        rows = replays.rows(index, sample)
    return Measured(rows, whole, sloped)


def replayed(call: Call, z: tf.Tensor) -> tf.Tensor:
    """The sample that the estimator's replays would have for this z."""
    if not call.dist.discrete:
        return z
    if call.layer.estimator.replay == "relaxed":
        return call.dist.relax(z, tf.cast(call.layer.estimator.temperature, z.dtype))
    return call.dist.harden(z)


def half(f_b: tf.Tensor, split: tf.Tensor, opposite: tf.Tensor) -> tf.Tensor:
    """One half of the examples, `[n]` of bool: by this bit of their numbers, or the other half."""
    number = tf.range(tf.shape(f_b)[0])
    return tf.math.logical_xor(tf.bitwise.right_shift(number, split) % 2 == 1, opposite)


def count_splits(f_b: np.ndarray) -> int:
    """How many bits tell any two examples apart."""
    return max(1, (len(f_b) - 1).bit_length())


def mirrored(call: Call, seed: tf.Tensor, alone: tf.Tensor | bool = False) -> tf.Tensor:
    """Another z of the same support, in most coordinates on the other side: its sample differs.

    For discrete samples that is `-z`, for continuous ones the other side of their mean. In each
    example one variable moves at least, and no other if it is to move `alone`. What an infinite
    logit leaves no choice stays: no sample has a class that cannot be.
    """
    dist, z = call.dist, call.z
    one_hot = isinstance(dist, OneHotCategorical)
    free = dist.zero_where_fixed(tf.ones_like(z)) > 0
    u = tf.random.stateless_uniform(tf.shape(z), seed)
    of_variable = tf.where(free, u, 2.0)
    if one_hot:
        several = tf.reduce_sum(tf.cast(free, u.dtype), -1, keepdims=True) > 1
        of_variable = tf.where(several, u[..., :1], 2.0)
    axes = list(range(1, z.shape.rank))
    mirror = (u < 0.75) & ~tf.convert_to_tensor(alone)
    mirror |= of_variable <= tf.reduce_min(of_variable, axes, keepdims=True)
    other = -z if dist.discrete else dist.from_noise(-call.eps).z
    other = tf.where(tf.math.is_finite(z) & mirror & free, other, z)
    if not one_hot:
        return other
    lowest = tf.reduce_min(other, -1, keepdims=True)
    return tf.where(free, other, lowest - stand_in_logit(dist.dtype))


def moved_by(
    before: np.ndarray,
    after: np.ndarray,
    changed: np.ndarray,
    allowed: np.ndarray | float,
    alone: np.ndarray | bool = False,
) -> float | None:
    """By how much rows that were not changed moved, if it is more than allowed.

    `alone`: see `relative_difference`.
    """
    still = ~changed
    if not (relative_difference(after[still], before[still], alone) > allowed).any():
        return None
    return float(difference(after[still], before[still]).max())


def who(call: Call) -> str:
    return f"the stochastic layer {call.name!r} (estimator {call.layer.estimator.id!r})"


def _not_repeated(model: Any, call: Call, moved: float, f_b: np.ndarray) -> str:
    return (
        f"RelaxModel {model.name!r} cannot be replayed: with all samples and all of Keras's "
        f"random masks as before, the cost differed by up to {moved:.3g} (costs are up to "
        f"{size(f_b):.3g}), beyond rounding. The estimator of {who(call)} "
        "compares costs at several samples, and would take the difference for an effect of the "
        "sample. Likely causes: raw `tf.random` operations (use keras.layers.Dropout and the like, "
        "or keras.random with a keras.random.SeedGenerator), a random or stateful layer inside a "
        "`tf.function`, state in a tf.Variable or in Python, a call that ignores its inputs. Or "
        "use an estimator that needs one evaluation of the cost: 'relax', 'nvil' or 'reinforce'. "
        + INSIST
    )


def coupled_examples(model: Any, call: Call, moved: float, f_b: np.ndarray) -> str:
    return (
        f"RelaxModel {model.name!r} couples the examples of a batch: changing the samples of "
        f"{who(call)} in some examples moved others by up to {moved:.3g}, in their cost (up to "
        f"{size(f_b):.3g}), its slopes or the parameters of a later stochastic layer, beyond "
        "rounding. Each sample is credited with the cost of its own example, so the gradient "
        "estimates would be biased. Likely causes: batch normalisation in training mode "
        "downstream of the sample (use LayerNormalization, move it upstream, or freeze it), a "
        "contrastive loss or another one that compares the examples of a batch, a mask that is "
        "computed from samples, a mean over the batch in a layer or in `compute_cost`. Make the "
        "cost one of each example alone, or use an estimator that backpropagates through its "
        "sample ('concrete', 'straight_through', 'reinmax', which are biased; "
        "'reparameterization' for normal variables). " + INSIST
    )
