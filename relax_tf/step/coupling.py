"""Properties (a) and (b) of the certificate: replays repeat, and examples are not coupled."""

from typing import Any

import numpy as np
import tensorflow as tf

from relax_tf.distributions.base import over_event
from relax_tf.distributions.noise import fold_in
from relax_tf.layers.passes import Call
from relax_tf.step.replay import Replays
from relax_tf.step.rounding import (
    ROUNDING,
    difference,
    epsilon,
    relative_difference,
    size,
)

INSIST = (
    "To train it all the same, set `model.certify = False`: whether the estimates are right is "
    "then for you to know."
)


def check_replays_and_coupling(probe: Any) -> tuple[np.ndarray, set[int]]:
    """(a) and (b).

    Half of the examples get another sample, and in the other half nothing may move: neither the
    cost, nor the theta and the KL of a later call (a cost may show the move of a theta only where
    it crosses a threshold), nor the slopes that an estimator uses. The halves are made by the bits
    of the examples' numbers, so that any two are in different halves of some split.

    Args:
        probe: a `relax_tf.step.certificate.Probe`.

    Returns:
        The costs `[n]`, and the calls that couple examples and may: they backpropagate.
    """

    def concerned() -> list[tuple[int, Call]]:
        return [
            (index, call)
            for index, call in enumerate(probe.calls)
            if call.layer.estimator.needs_cost or call.layer.estimator.relies_on_derivative
        ]

    def measure(replays, seeds, f_b, split, opposite):
        changed = half(f_b, split, opposite)
        measured = []
        for index, call in concerned():
            seed = fold_in(seeds.next(call.layer), split)
            z = tf.where(over_event(changed, call.z), mirrored(call, seed), call.z)
            measured.append(_measured(replays, index, call, z))
        return f_b, changed, replays.recorded(), measured

    measurement, coupled, number, f_b = probe.measurement(measure), set(), 0, None
    splits, noises = 1, {}
    while number < 2 * splits:
        split, opposite = divmod(number, 2)
        f_b, changed, recorded, measured = probe.run(
            measurement, tf.constant(split), tf.constant(bool(opposite)), noise=number
        )
        splits = count_splits(f_b)
        number += 1
        for (index, call), (repeated, altered, soft, whole) in zip(
            concerned(), measured, strict=True
        ):
            noise = relative_difference(repeated, recorded[index]).max(0, initial=0)
            noise = noises[index] = np.maximum(noise, noises.get(index, 0.0))
            noisy = noise > ROUNDING * probe.epsilon
            if noisy.any() and call.layer.estimator.evaluations > 1:
                moved = difference(repeated, recorded[index])[:, 0].max()
                raise ValueError(_not_repeated(probe.model, call, moved, f_b))
            # Of numbers that are random by themselves nothing can be said.
            allowed = np.where(noisy, np.inf, 8 * noise + ROUNDING * epsilon(f_b.dtype))
            moved = moved_by(repeated, altered, changed, allowed)
            if moved is None and soft:
                moved = moved_by(*soft, changed, allowed.max(initial=0))
            if moved is not None:
                if call.layer.estimator.needs_cost:
                    raise ValueError(_coupled(probe.model, call, moved, f_b))
                coupled.add(index)
            if len(whole) and (relative_difference(altered, whole) > allowed).any():
                probe.model._graph_tells = False
    return f_b, coupled


def _measured(replays: Replays, index: int, call: Call, z: tf.Tensor) -> tuple:
    """Rows at the drawn sample and at `H(z)`; the same with slopes; and once more without graph."""
    other = call.dist.harden(z)
    repeated, altered = (replays.rows(index, sample) for sample in (call.sample, other))
    emits, soft = call.layer.estimator.replay, ()
    if call.layer.estimator.needs_cost and emits in ("relaxed", "sloped"):
        samples = (call.sample, other)
        if emits == "relaxed":
            temperature = tf.cast(call.layer.estimator.temperature, z.dtype)
            samples = (call.dist.relax(call.z, temperature), call.dist.relax(z, temperature))
        soft = tuple(replays.rows(index, sample, emits, slopes=True) for sample in samples)
    whole = replays.rows(index, other, prune=False) if replays.prunes(index) else ()
    return repeated, altered, soft, whole


def half(f_b: tf.Tensor, split: tf.Tensor, opposite: tf.Tensor) -> tf.Tensor:
    """One half of the examples, `[n]` of bool: by this bit of their numbers, or the other half."""
    number = tf.range(tf.shape(f_b)[0])
    return tf.math.logical_xor(tf.bitwise.right_shift(number, split) % 2 == 1, opposite)


def count_splits(f_b: np.ndarray) -> int:
    """How many bits tell any two examples apart."""
    return max(1, (len(f_b) - 1).bit_length())


def mirrored(call: Call, seed: tf.Tensor) -> tf.Tensor:
    """Another z of the same support, in most coordinates `-z`: its sample differs."""
    mirror = tf.random.stateless_uniform(tf.shape(call.z), seed) < 0.75
    return tf.where(tf.math.is_finite(call.z) & mirror, -call.z, call.z)


def moved_by(
    before: np.ndarray, after: np.ndarray, changed: np.ndarray, allowed: np.ndarray
) -> float | None:
    """By how much rows that were not changed moved, if it is more than allowed."""
    still = ~changed
    if not (relative_difference(after[still], before[still]) > allowed).any():
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


def _coupled(model: Any, call: Call, moved: float, f_b: np.ndarray) -> str:
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
