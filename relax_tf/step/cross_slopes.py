"""Property (b) of the certificate once more, by derivatives."""

from typing import Any

import numpy as np
import tensorflow as tf

from relax_tf.step.coupling import count_splits, coupled_examples, crediting, half, replayed
from relax_tf.step.replay import row
from relax_tf.step.rounding import ALIKE


def check_cross_slopes(probe: Any, f_b: np.ndarray) -> None:
    """No example's cost has a slope in another one's sample.

    What `check_replays_and_coupling` cannot see moving, this sees: a coupling that is lost in the
    rounding of a cost with a large constant part, or in the noise of a cost that is random by
    itself. Where a later call has another theta in place of another cost, its theta and its KL
    count too. Of a cost without a derivative it sees nothing; as that may show in an error, the
    measurement is one of its own.

    Args:
        probe: a `relax_tf.step.certificate.Probe`.
        f_b: the costs `[n]`.

    Raises:
        ValueError: if examples are coupled.
    """
    if not crediting(probe) or len(f_b) < 2:
        return

    def measure(replays, seeds, f_b, split, opposite):
        del seeds
        others = half(f_b, split, opposite)
        measured = []
        for index, call in crediting(probe):
            sample = tf.stop_gradient(replayed(call, call.z))
            with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
                tape.watch(sample)
                values = replays.values(index, sample, call.layer.estimator.replay)
                sums = [tf.reduce_sum(tf.where(others, tf.zeros_like(v), v)) for v in values]
            slopes = [tape.gradient(total, sample) for total in sums]
            measured.append([row(tf.convert_to_tensor(s)) for s in slopes if s is not None])
        return others, measured

    measurement = probe.measurement(measure)
    for number in range(2 * count_splits(f_b)):
        split, opposite = divmod(number, 2)
        arguments = tf.constant(split), tf.constant(bool(opposite))
        try:
            others, measured = probe.run(measurement, *arguments, noise=number)
        except (LookupError, NotImplementedError, tf.errors.OpError):  # no derivative
            return
        for (_, call), slopes in zip(crediting(probe), measured, strict=True):
            for slope in slopes:
                finite = np.where(np.isfinite(slope), np.abs(slope), 0.0)
                own, across = finite[~others].max(initial=0), finite[others].max(initial=0)
                if across > ALIKE * probe.rounding(f_b) * own:
                    raise ValueError(coupled_examples(probe.model, call, across, f_b))
