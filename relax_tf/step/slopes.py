"""Property (c) of the certificate: the cost changes as its derivative says."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from relax_tf.distributions.base import sum_event
from relax_tf.layers.passes import Call
from relax_tf.step.coupling import INSIST, mirrored, who
from relax_tf.step.rounding import ROUNDING, epsilon, rms, size

_NODES = (8, 16, 32, 64)  # of the quadratures along a path
# From one hard sample to another, where jumps are met; between relaxed samples, where terms are
# seen that vanish at hard ones; a short way, on which even a rough cost is smooth.
_PATHS = ("hard", "relaxed", "short")


def check_derivatives(probe: Any, coupled: set[int]) -> None:
    """(c): along a straight line between two samples the cost changes by its integrated slope.

    A difference quotient at one point would miss jumps, which are rare and far apart; over a whole
    path they add up. Gauss-Legendre quadrature of more and more nodes tells a slope that is wrong
    from one that is merely rough: the error of the latter shrinks.

    Args:
        probe: a `relax_tf.step.certificate.Probe`.
        coupled: calls that couple examples and may, since they backpropagate for all at once.
    """
    relying = [i for i, call in enumerate(probe.calls) if call.layer.estimator.relies_on_derivative]
    if not relying:
        return

    def measure(replays, seeds, f_b, t, relaxed, length):
        del f_b
        values = []
        for index in relying:
            call = probe.calls[index]
            estimator, dist = call.layer.estimator, call.dist
            temperature = tf.cast(estimator.temperature, dist.dtype)
            seed = seeds.next(call.layer)
            another = dist.from_noise(dist.noise(seed)).z
            start, end = (
                tf.stop_gradient(tf.where(relaxed, dist.relax(soft, temperature), dist.harden(z)))
                for soft, z in ((call.z, call.z), (another, mirrored(call, seed)))
            )
            way = tf.cast(length, start.dtype) * (end - start)
            sample = start + tf.cast(t, start.dtype) * way
            emits = "relaxed" if estimator.needs_cost else "held"
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sample)
                f = replays.run(index, sample, emits)
            slope = tape.gradient(f, sample)
            if slope is None:  # the estimator says so itself, and what to do
                slope = tf.fill(tf.shape(sample), tf.cast(float("nan"), sample.dtype))
            values.append((f, sum_event(slope * way)))
        return values

    measurement = probe.measurement(measure)
    for kind in _PATHS:
        arguments = tf.constant(kind != "hard"), tf.constant(1 / 16 if kind == "short" else 1.0)
        at = functools.cache(
            lambda t, arguments=arguments: probe.run(measurement, tf.constant(t), *arguments)
        )
        for position, index in enumerate(relying):
            path = functools.partial(_of_call, at, position, total=index in coupled)
            gap = wrong_slope(path, 4 * probe.epsilon)
            if gap:
                raise ValueError(_message(probe.model, probe.calls[index], *gap))


def _of_call(at: Callable[[float], list], position: int, t: float, total: bool) -> tuple:
    """Costs and slopes of one call, `[n]`; summed where backpropagation serves all at once."""
    f, slope = at(t)[position]
    return (f.sum(keepdims=True), slope.sum(keepdims=True)) if total else (f, slope)


def wrong_slope(at: Callable[[float], tuple], rounding: float) -> tuple[float, float, float] | None:
    """The change, the integrated slope and their distance, where they do not fit together.

    Args:
        at: from t in [0, 1] to values and slopes, `[n]` each.
        rounding: of the values, relative to their size, beyond that of their dtype.
    """
    (f_0, _), (f_1, _) = at(t=0.0), at(t=1.0)
    change = f_1.astype(float) - f_0
    rounding += ROUNDING * epsilon(f_0.dtype)
    floor = rounding * max(size(f_0), size(f_1))
    integrals = []
    for count in _NODES:
        points, weights = np.polynomial.legendre.leggauss(count)
        slopes = [at(t=float(t))[1] for t in (points + 1) / 2]
        integral = np.tensordot(weights / 2, np.array(slopes, float), 1)
        if not np.isfinite(integral).all() or not np.isfinite(change).all():
            return None
        error = rms(change - integral)
        if error <= 0.005 * (rms(change) + rms(integral)) + floor:
            return None
        integrals.append(integral)
        steps = [rms(b - a) for a, b in itertools.pairwise(integrals)]
        factor = 2 if count == _NODES[-1] else 4
        if len(steps) > 1 and error > factor * max(steps[-2:]) + floor:
            return rms(change), rms(integral), error
    return None


def _message(model: Any, call: Call, change: float, integral: float, error: float) -> str:
    remedy = "'relax', 'nvil' or 'reinforce'" if call.dist.discrete else "'lax' or 'reinforce'"
    return (
        f"RelaxModel {model.name!r} has a cost that does not change as its derivative says: from "
        f"one sample of {who(call)} to another it changed by {change:.3g}, its derivative adds up "
        f"to {integral:.3g}, and they are {error:.3g} apart. This estimator relies on the "
        "derivative, and would be biased. Likely causes: `tf.stop_gradient`, rounding, argmax, a "
        "comparison, a straight-through operation or a `tf.custom_gradient` between the sample and "
        f"the cost. Use an estimator that asks nothing of the cost: {remedy}. " + INSIST
    )
