"""Property (d) of the certificate: no loss that a layer adds depends on a sample."""

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from relax_tf.distributions.base import Draw, over_event
from relax_tf.layers.passes import Call
from relax_tf.step.coupling import INSIST, crediting, half, mirrored, who
from relax_tf.step.rounding import ALIKE, ROUNDING, difference

_TRIES = 4  # other samples of half of the examples: some may happen to have the same mean


def check_added_losses(probe: Any, f_b: np.ndarray) -> None:
    """(d): what `add_loss` and activity regularisers add stays the same under other samples.

    Each is one number for the whole batch and joins the training loss as it is: no sample is
    credited with it. Under other samples it may not move, where it repeats with the same ones;
    and it may have no slope in them, which noise does not hide (a term that is there for its slope
    alone, `b - stop_gradient(b)`, counts). Unseen remains what is random by itself and has no
    derivative, and what is lost in the rounding of a large loss.

    Args:
        probe: a `relax_tf.step.certificate.Probe`.
        f_b: the costs `[n]`.

    Raises:
        ValueError: if one does not.
    """
    if not probe.adds_losses or not crediting(probe):
        return

    def measure(replays, seeds, f_b, opposite, unchanged, differentiable=True):
        changed = half(f_b, tf.constant(0), opposite) & ~unchanged
        measured = []
        for index, call in crediting(probe):
            other = mirrored(call, seeds.next(call.layer))
            z = tf.where(over_event(changed, other), other, call.z)
            sample = call.layer.estimator.emit(call.dist, Draw(call.dist.harden(z), z))
            with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
                tape.watch(sample)
                losses = replays.added(index, sample)
                pairs = list(zip(tf.unstack(losses), tf.unstack(losses / 3), strict=True))
            slopes = [_slopes(tape, *pair, sample) for pair in pairs if differentiable]
            measured.append((losses, slopes))
        return replays.added_by_hard_pass(), measured

    measurement = probe.measurement(measure)
    try:
        probe.run(measurement, tf.constant(False), tf.constant(True))
    except tf.errors.OpError:  # the derivative of Python code, for one
        measurement = probe.measurement(functools.partial(measure, differentiable=False))
    for noise in range(_TRIES):
        opposite = tf.constant(noise % 2 == 1)
        recorded, before = probe.run(measurement, opposite, tf.constant(True), noise=noise)
        _, after = probe.run(measurement, opposite, tf.constant(False), noise=noise)
        for (_, call), (old, slopes), (new, _) in zip(crediting(probe), before, after, strict=True):
            rounding = probe.rounding(f_b) * np.abs(old)
            if len(slopes) and (slopes > ALIKE * rounding).any():
                found = f"slopes in them add up to {max(slopes):.3g}"
                raise ValueError(_message(probe.model, call, found))
            if not old.shape == new.shape == recorded.shape:
                continue
            repeats = difference(old, recorded) <= ROUNDING * rounding
            moved = difference(new, old)
            # Where a computation repeats to the last bit, hardly any movement is rounding.
            allowed = np.where(old == recorded, ALIKE, ROUNDING) * rounding
            if probe.epsilon > probe.rounding(f_b):  # half precision: slopes are sharper there
                allowed = np.maximum(allowed, 4 * probe.epsilon * np.abs(old))
            if (repeats & (moved > allowed)).any():
                found = f"with others it changed by {moved[repeats].max():.3g}"
                raise ValueError(_message(probe.model, call, found))


def _slopes(tape: tf.GradientTape, loss: tf.Tensor, third: tf.Tensor, sample: tf.Tensor) -> Any:
    """The sizes of a loss's slopes in the sample, summed over all examples; 0 if it has none.

    Where slopes cancel, as of a sum of probabilities, what remains is rounding, and a third of the
    loss has others.
    """
    try:
        slope, of_third = (
            tape.gradient(v, sample, unconnected_gradients="zero") for v in (loss, third)
        )
    except Exception:  # an operation in between has no derivative, or one that training never asks
        return tf.zeros([], sample.dtype)
    total = tf.reduce_sum(tf.abs(slope))
    rounding = tf.reduce_sum(tf.abs(slope - 3 * of_third))
    return tf.where(rounding < 0.1 * total, total, tf.zeros_like(total))


def _message(model: Any, call: Call, found: str) -> str:
    return (
        f"RelaxModel {model.name!r} adds a loss (`add_loss` or an activity regulariser) that "
        f"depends on the samples of {who(call)}: {found}. It is one number "
        "for the whole batch, with which no sample is credited, so the gradient would lack its "
        "part and be biased. Make it a term of each example's cost: a compiled loss, or one that "
        "`compute_cost` returns, [batch]. Or use an estimator that backpropagates through its "
        "sample ('concrete', 'straight_through', 'reinmax', which are biased; "
        "'reparameterization' for normal variables). " + INSIST
    )
