"""Property (e) of the certificate: a distribution of one's own is at one with itself."""

from typing import Any

import numpy as np
import tensorflow as tf

from relax_tf.distributions.consistency import check_scores, is_foreign, scores


def check_distributions(probe: Any) -> None:
    """The score is the derivative of `log_prob`, and a sample is what its `z` hardens to.

    Estimators believe both, and a cost cannot tell. Classes of this library are known to be in
    order; of a class without a `log_prob` that has a derivative the score cannot be told.

    Args:
        probe: a `relax_tf.step.certificate.Probe`.

    Raises:
        ValueError: if one does not hold.
    """
    foreign = [call for call in probe.calls if is_foreign(call.dist)]
    if not foreign:
        return

    def measure(replays, seeds, f_b):
        del replays, seeds, f_b
        found = []
        for call in probe.calls:
            if is_foreign(call.dist):
                dist = call.dist.detached()
                b, z = map(tf.stop_gradient, dist.from_noise(call.eps))
                differs = tf.abs(b - dist.harden(z)) > 1e-4 if dist.discrete else tf.constant(False)
                found.append((scores(dist, b), differs))
        return found

    measured = probe.run(probe.measurement(measure))
    for call, (found, differs) in zip(foreign, measured, strict=True):
        where = f"{type(call.dist).__name__}, of layer {call.layer.name!r},"
        if found:
            check_scores(where, found)
        if differs.any():
            raise ValueError(
                f"a sample of {where} must be `harden(z)` of its z: `from_noise` returned others "
                f"for {np.mean(differs):.1%} of the variables."
            )
