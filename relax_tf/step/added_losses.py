"""Property (d) of the certificate: no loss that a layer adds depends on a sample."""

from typing import Any

import numpy as np
import tensorflow as tf

from relax_tf.distributions.base import Draw, over_event
from relax_tf.layers.passes import Call
from relax_tf.step.coupling import INSIST, crediting, half, mirrored, who
from relax_tf.step.rounding import ROUNDING, difference

_TRIES = 4  # other samples of half of the examples: some may happen to have the same mean


def check_added_losses(probe: Any, f_b: np.ndarray) -> None:
    """(d): what `add_loss` and activity regularisers add stays the same under other samples.

    Each is one number for the whole batch and joins the training loss as it is: no sample is
    credited with it. Those of which two passes give different values or numbers are left alone.

    Args:
        probe: a `relax_tf.step.certificate.Probe`.
        f_b: the costs `[n]`.

    Raises:
        ValueError: if one does not.
    """
    if not probe.adds_losses or not crediting(probe):
        return

    def measure(replays, seeds, f_b, opposite, unchanged):
        changed = half(f_b, tf.constant(0), opposite) & ~unchanged
        measured = []
        for index, call in crediting(probe):
            other = mirrored(call, seeds.next(call.layer))
            z = tf.where(over_event(changed, other), other, call.z)
            sample = call.layer.estimator.emit(call.dist, Draw(call.dist.harden(z), z))
            measured.append(replays.added(index, sample))
        return replays.added_by_hard_pass(), measured

    measurement = probe.measurement(measure)
    for noise in range(_TRIES):
        opposite = tf.constant(noise % 2 == 1)
        recorded, before = probe.run(measurement, opposite, tf.constant(True), noise=noise)
        _, after = probe.run(measurement, opposite, tf.constant(False), noise=noise)
        for (_, call), old, new in zip(crediting(probe), before, after, strict=True):
            if not old.shape == new.shape == recorded.shape:
                continue
            rounding = ROUNDING * probe.rounding(f_b) * np.maximum(np.abs(recorded), np.abs(old))
            repeats = difference(old, recorded) <= rounding
            moved = difference(new, old)
            if (repeats & (moved > rounding)).any():
                raise ValueError(_message(probe.model, call, moved[repeats].max()))


def _message(model: Any, call: Call, moved: float) -> str:
    return (
        f"RelaxModel {model.name!r} adds a loss (`add_loss` or an activity regulariser) that "
        f"depends on the samples of {who(call)}: with others it changed by {moved:.3g}. It is one "
        "number for the whole batch, with which no sample is credited, so the gradient would lack "
        "its part and be biased. Make it a term of each example's cost: a compiled loss, or one "
        "that `compute_cost` returns, [batch]. Or use an estimator that backpropagates through its "
        "sample ('concrete', 'straight_through', 'reinmax', which are biased; "
        "'reparameterization' for normal variables). " + INSIST
    )
