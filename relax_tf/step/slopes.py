"""Property (c) of the certificate: the cost changes as its derivative says."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from relax_tf.distributions.base import sum_event
from relax_tf.layers.passes import Call
from relax_tf.step.coupling import INSIST, mirrored, who
from relax_tf.step.rounding import ROUNDING, computes_in_half, epsilon, in_float32, rms

_NODES = (8, 16, 32, 64)  # of the quadratures along a path
_AGREES = 0.005  # of the changes
_CLOSER = 4  # examples, those that fit the least, that are looked at closely before a refusal
_HALVINGS = 60  # of parts of their paths
_PLACES = 2 * epsilon("float32")  # how far the places of slopes are rounded
# From one hard sample to another, where jumps are met; between relaxed samples, where terms are
# seen that vanish at hard ones; a short way, on which even a rough cost is smooth; and one variable
# alone, another one in each example, beside whose change no other hides a small one.
_PATHS = ("hard", "relaxed", "short", "alone")


def check_derivatives(probe: Any, coupled: set[int], random: set[int]) -> None:
    """(c): along a straight line between two samples the cost changes by its integrated slope.

    A difference quotient at one point would miss jumps, which are rare and far apart; over a whole
    path they add up. Gauss-Legendre quadrature of more and more nodes tells a slope that is wrong
    from one that is merely rough: the error of the latter shrinks.

    Where discrete layers downstream are held, the cost does not show how their theta moves: it is
    measured too.

    Args:
        probe: a `relax_tf.step.certificate.Probe`.
        coupled: calls that couple examples and may, since they backpropagate for all at once.
        random: calls for which the cost is random by itself.
    """
    relying = [i for i, call in enumerate(probe.calls) if call.layer.estimator.relies_on_derivative]
    if not relying:
        return

    def measure(replays, seeds, f_b, t, rest, relaxed, length, alone):
        del f_b
        measured = []
        for index in relying:
            call = probe.calls[index]
            estimator, dist = call.layer.estimator, call.dist
            temperature = tf.cast(estimator.temperature, dist.dtype)
            seed = seeds.next(call.layer)
            another = dist.from_noise(dist.noise(seed)).z
            start, end = (
                tf.stop_gradient(tf.where(relaxed, dist.relax(soft, temperature), dist.harden(z)))
                for soft, z in ((call.z, call.z), (another, mirrored(call, seed, alone)))
            )
            way = tf.cast(length, start.dtype) * (end - start)
            to, back = tf.cast(t, start.dtype) * way, tf.cast(rest, start.dtype) * way
            sample = tf.where(t < rest, start + to, start + way - back)
            emits = "relaxed" if estimator.needs_cost else "held"
            with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
                tape.watch(sample)
                if emits == "held":
                    f, *later = replays.values(index, sample, emits)
                else:
                    f, later = replays.run(index, sample, emits), []
            slope = tape.gradient(f, sample)
            if slope is None:  # the estimator says so itself, and what to do
                slope = tf.fill(tf.shape(sample), tf.cast(float("nan"), sample.dtype))
            slopes = [
                slope,
                *(tape.gradient(v, sample, unconnected_gradients="zero") for v in later),
            ]
            pairs = zip([f, *later], slopes, strict=True)
            measured.append([(value, sum_event(slope * way)) for value, slope in pairs])
        return measured

    with _as_exact_as_can_be(probe, measure) as (at_place, rounding):
        for kind in _PATHS:
            at = functools.cache(functools.partial(at_place, kind))
            for position, index in enumerate(relying):
                for number in range(len(at(t=0.0)[position])):
                    path = functools.partial(_of_call, at, position, number, total=index in coupled)
                    gap = wrong_slope(path, 4 * rounding, apart=kind == "alone")
                    if gap:
                        call = probe.calls[index]
                        raise ValueError(_message(probe.model, call, *gap, index in random))


@contextlib.contextmanager
def _as_exact_as_can_be(probe: Any, measure: Callable) -> Iterator[tuple[Callable, float]]:
    """The measurement as a function of path and place, and the rounding of what it gives.

    Layers in half precision compute in float32 meanwhile, where slopes and changes may be compared;
    unless the model does not bear it, or goes on to round: it may have casts of its own.
    """
    rounds = True

    def traced(*arguments: Any) -> list:
        nonlocal rounds
        measured = measure(*arguments)
        rounds = computes_in_half()
        return measured

    def at_place(measurement: Callable, kind: str, t: float) -> list:
        relaxed, length = kind in ("relaxed", "short"), 1 / 16 if kind == "short" else 1.0
        arguments = tf.constant(relaxed), tf.constant(length), tf.constant(kind == "alone")
        return probe.run(measurement, tf.constant(t), tf.constant(1 - t), *arguments)

    if probe.epsilon > epsilon("float32"):
        with in_float32(probe.model):
            exact = functools.partial(at_place, probe.measurement(traced))
            with contextlib.suppress(Exception):  # whatever a model does with another dtype
                exact("hard", 0.0)
            if not rounds:
                yield exact, epsilon("float32")
                return
    yield functools.partial(at_place, probe.measurement(measure)), probe.epsilon


def _of_call(
    at: Callable[[float], list], position: int, number: int, t: float, total: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Values and slopes of one call, `[n]`; summed where backpropagation serves all at once."""
    f, slope = at(t=t)[position][number]
    return (f.sum(keepdims=True), slope.sum(keepdims=True)) if total else (f, slope)


def wrong_slope(
    at: Callable[[float], tuple], rounding: float, apart: bool = False
) -> tuple[float, float, float] | None:
    """The change, the integrated slope and their distance, where they do not fit together.

    Each example counts by its own change and the median one: no large one excuses the others.
    Before a slope is called wrong, the examples that fit the least are looked at closely; if they
    do fit, the cost is merely rough.

    Args:
        at: from t in [0, 1] to values and slopes, `[n]` each.
        rounding: of the values, relative to their size, beyond that of their dtype.
        apart: whether each counts by its own change alone.
    """
    (f_0, _), (f_1, _) = at(t=0.0), at(t=1.0)
    with np.errstate(invalid="ignore"):
        change = f_1.astype(float) - f_0
    rounding += ROUNDING * epsilon(f_0.dtype)
    sizes = np.maximum(np.abs(f_0), np.abs(f_1)).astype(float)
    sizes = np.where(np.isfinite(sizes), sizes, 0.0)
    floor = rounding * (sizes + np.median(sizes))

    def compared(integral: np.ndarray) -> tuple[np.ndarray, ...]:
        """The integral, its distance from the change, and what they are measured by.

        Examples without finite numbers count as ones that do not change.
        """
        known = np.isfinite(integral) & np.isfinite(change)
        integral, moved = np.where(known, integral, 0.0), np.where(known, change, 0.0)
        scale = np.abs(moved) + np.abs(integral)
        return integral, moved - integral, scale + (0 if apart else np.median(scale))

    def share(distance: np.ndarray, scale: np.ndarray) -> np.ndarray:
        beyond = np.maximum(np.abs(distance) - floor, 0)
        return np.divide(beyond, scale, out=np.zeros_like(scale), where=scale > 0)

    integrals = []
    for count in _NODES:
        points, weights = _gauss(count)
        slopes = np.array([at(t=float(t))[1] for t in points], float)
        integral, distance, scale = compared(np.tensordot(weights, slopes, 1))
        gaps = share(distance, scale)
        if rms(gaps) <= _AGREES:
            return None
        integrals.append(integral)
        steps = [rms(share(b - a, scale)) for a, b in itertools.pairwise(integrals)]
        factor = 2 if count == _NODES[-1] else 4
        if len(steps) > 1 and rms(gaps) > factor * max(steps[-2:]):
            break
    else:
        return None
    for _ in range(_CLOSER):
        worst = np.argmax(gaps)
        integral[worst] = bisected(at, worst, enough=0.1 * _AGREES * abs(change[worst]))
        integral, distance, scale = compared(integral)
        gaps = share(distance, scale)
        if rms(gaps) <= _AGREES:
            return None
        if gaps[worst] > _AGREES:
            return tuple(float(v[worst]) for v in (change, integral, np.abs(distance)))
    return None


def _gauss(count: int) -> tuple[np.ndarray, np.ndarray]:
    points, weights = np.polynomial.legendre.leggauss(count)
    return (points + 1) / 2, weights / 2


def bisected(at: Callable[[float], tuple], example: int, enough: float) -> float:
    """The integral of one example's slope, from parts that are halved where it fits the least.

    Kinks, steps however steep, and slopes like 1 / t at an end, of a cross-entropy whose
    probabilities are samples, fit in the end. Jumps do not, nor what is wrong all the way. That the
    places of the slopes are rounded is taken into account.

    Args:
        at: as in `wrong_slope`.
        example: its number.
        enough: the sum of the parts' distances from their changes that will do.
    """
    points, weights = _gauss(5)

    def part(start: float, end: float) -> tuple[float, float, float, float]:
        """The distance of the integral from the change, the two ends, and the integral."""
        (f_start, f_end) = (float(at(t=t)[0][example]) for t in (start, end))
        width = end - start
        slopes = np.array([at(t=float(t))[1][example] for t in start + width * points], float)
        distance = width * (weights @ slopes) - (f_end - f_start)
        rounding = _PLACES * np.abs(slopes).max()
        distance -= np.clip(distance, -rounding, rounding)
        return abs(distance), start, end, f_end - f_start + distance

    parts = [part(0.0, 1.0)]
    while enough < sum(distance for distance, *_ in parts) and len(parts) <= _HALVINGS:
        _, start, end, _ = parts.pop(parts.index(max(parts)))
        middle = (start + end) / 2
        parts += [part(start, middle), part(middle, end)]
    return sum(integral for *_, integral in parts)


def _message(
    model: Any, call: Call, change: float, integral: float, error: float, random: bool
) -> str:
    remedy = "'relax', 'nvil' or 'reinforce'" if call.dist.discrete else "'lax' or 'reinforce'"
    found = (
        f"RelaxModel {model.name!r} has a cost that does not change as its derivative says: from "
        f"one sample of {who(call)} to another it (or the parameters of a later stochastic layer) "
        f"changed by {change:.3g}, its derivative adds up to {integral:.3g}, and they are "
        f"{error:.3g} apart. "
    )
    if random:
        return found + (
            "The cost is random by itself: it differs between two passes with the same samples, "
            "so its derivative cannot be measured. Take keras.layers.GaussianNoise and the like, "
            "or keras.random with a keras.random.SeedGenerator, in the place of raw `tf.random` "
            f"operations, or an estimator that asks nothing of the cost: {remedy}. " + INSIST
        )
    return found + (
        "This estimator relies on the derivative, and would be biased. Likely causes: "
        "`tf.stop_gradient`, rounding, argmax, a comparison, a straight-through operation or a "
        "`tf.custom_gradient` between the sample and the cost. Use an estimator that asks nothing "
        f"of the cost: {remedy}. " + INSIST
    )
