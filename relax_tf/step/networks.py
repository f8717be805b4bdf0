"""Properties (b) and (c) of the certificate for networks of control variates."""

import functools
import itertools
from typing import Any

import numpy as np
import tensorflow as tf

from relax_tf.distributions.base import over_event, sum_event
from relax_tf.estimators.terms import value_and_derivative
from relax_tf.layers.passes import Call
from relax_tf.step.coupling import INSIST, count_splits, half, mirrored, moved_by, who
from relax_tf.step.gates import lift
from relax_tf.step.replay import row
from relax_tf.step.rounding import ROUNDING, epsilon, relative_difference
from relax_tf.step.slopes import wrong_slope


def check_networks(probe: Any) -> None:
    """A network `r(z, context)` is of each example alone, and its derivative is its own.

    Equation 10 credits each example with its own `c(z)` and adds `dc/dz` back: of a network that
    compares the examples of a batch, or has a false derivative, the two do not cancel. Networks
    that nobody has replaced are known to be in order.

    Args:
        probe: a `relax_tf.step.certificate.Probe`.

    Raises:
        ValueError: if a network fails.
    """
    networks = {i: call.layer.estimator.given_network for i, call in enumerate(probe.calls)}
    concerned = [index for index, network in networks.items() if network is not None]
    if not concerned:
        return
    for index in concerned:  # so that it depends on what it sees; `certify` puts all back
        lift(networks[index].trainable_variables)

    def measure(replays, seeds, f_b, split, opposite, t):
        del replays
        changed = half(f_b, split, opposite)
        measured = []
        for index in concerned:
            call = probe.calls[index]
            terms = call.layer.estimator.network_terms(call.dist.detached(), call.context)
            start = tf.stop_gradient(call.z)
            way = mirrored(call, seeds.next(call.layer)) - start
            on_the_way = _finite(start + tf.cast(t, start.dtype) * way, start)
            mixed = tf.where(over_event(changed, start), on_the_way, start)
            points = start, start, mixed, on_the_way
            once, again, some, all_ = (value_and_derivative(terms, z) for z in points)
            rows = [tf.concat([row(part) for part in pair], -1) for pair in (once, again, some)]
            slope = sum_event(tf.where(tf.math.is_finite(way), all_[1] * way, tf.zeros_like(way)))
            measured.append((*rows, all_[0], slope))
        return changed, measured

    measurement = probe.measurement(measure)

    @functools.cache
    def at(t: float, split: int = 0, opposite: bool = False) -> tuple:
        return probe.run(measurement, tf.constant(split), tf.constant(opposite), tf.constant(t))

    splits = count_splits(at(0.0)[0])
    for position, index in enumerate(concerned):
        call = probe.calls[index]
        tolerance = ROUNDING * epsilon(call.z.dtype)
        for split, opposite in itertools.product(range(splits), (False, True)):
            changed, measured = at(1.0, split, opposite)
            once, again, some = measured[position][:3]
            noise = relative_difference(again, once).max(0, initial=0)
            allowed = np.where(noise > tolerance, np.inf, 8 * noise + tolerance)
            moved = moved_by(once, some, changed, allowed)
            if moved is not None:
                raise ValueError(_coupled(probe.model, call, moved))

        def path(t: float, position=position) -> tuple:
            return at(t)[1][position][3:]

        gap = wrong_slope(path, 0.0)
        if gap:
            raise ValueError(_false_derivative(probe.model, call, *gap))


def _finite(values: tf.Tensor, instead: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.math.is_finite(values), values, instead)


def _coupled(model: Any, call: Call, moved: float) -> str:
    return (
        f"RelaxModel {model.name!r} has a control variate whose network couples the examples of a "
        f"batch: changing z of {who(call)} in some examples moved others by up to {moved:.3g}, in "
        "its output or the derivative of it. Each example is credited with a control variate of "
        "its own, so the gradient estimates would be biased. Likely causes: batch normalisation "
        "called with training=True (use LayerNormalization), a mean over the batch. Make the "
        "network one of each example alone. " + INSIST
    )


def _false_derivative(model: Any, call: Call, change: float, integral: float, error: float) -> str:
    return (
        f"RelaxModel {model.name!r} has a control variate whose network does not change as its "
        f"derivative says: from one z of {who(call)} to another its output changed by "
        f"{change:.3g}, its derivative adds up to {integral:.3g}, and they are {error:.3g} apart. "
        "The gradient estimates would be biased. Likely causes: `tf.stop_gradient`, rounding, a "
        "comparison or a `tf.custom_gradient` in the network. Use a network that is differentiable "
        "in z. " + INSIST
    )
