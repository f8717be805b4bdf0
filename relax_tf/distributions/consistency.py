"""Whether the methods of a distribution of one's own agree, as estimators take for granted.

The library's own agree by its tests.
"""

import copy
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from relax_tf.distributions.base import Distribution, over_event

_TOLERANCE = 1e-3  # of the largest number of a score; float32 leaves errors of 1e-5
_METHODS = ("score", "log_prob", "enumerate", "harden", "from_noise", "mean")
_STATES = 64  # at whose samples scores are looked at


class Scores(NamedTuple):
    """The score and the derivative of `log_prob`, each in the structure of theta."""

    score: Any
    derivative: Any


def is_foreign(dist: Distribution) -> bool:
    """Whether a method that is measured here is not of this library."""
    methods = (getattr(type(dist), name, None) for name in _METHODS)
    return any(method and not method.__module__.startswith("relax_tf.") for method in methods)


def scores(dist: Distribution, b: tf.Tensor) -> Scores | tuple[()]:
    """Of samples `[batch, *event]`; () of a distribution whose `log_prob` has no derivative.

    Where a sample is impossible or nothing is left to chance there is none, and both are 0.
    """
    if getattr(dist, "log_prob", None) is None:
        return ()
    leaves = [tf.stop_gradient(leaf) for leaf in tf.nest.flatten(dist.theta)]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(leaves)
        try:
            log_prob = _at(dist, tf.nest.pack_sequence_as(dist.theta, leaves)).log_prob(b)
        except NotImplementedError:
            return ()
    derivative = tape.gradient(log_prob, leaves)
    if any(leaf is None for leaf in derivative):
        return ()
    derivative = tf.nest.pack_sequence_as(dist.theta, derivative)

    def where_free(leaf):
        possible = over_event(tf.math.is_finite(log_prob), leaf)
        return tf.where(possible, dist.zero_where_fixed(leaf), tf.zeros([], leaf.dtype))

    return Scores(*(tf.nest.map_structure(where_free, of) for of in (dist.score(b), derivative)))


def _at(dist: Distribution, theta: Any) -> Distribution:
    """The distribution at another theta; a class may have none or its parent's `with_theta`."""
    try:
        other = dist.with_theta(theta)
    except Exception:
        other = None
    if type(other) is not type(dist):
        other = copy.copy(dist)
        other.theta = theta
    return other


def check_scores(name: str, found: Scores) -> None:
    """Raises a ValueError unless the score is the derivative of `log_prob`, in NumPy."""
    for pair in zip(*map(tf.nest.flatten, found), strict=True):
        difference = _difference(*map(np.asarray, pair))
        if difference is not None:
            raise ValueError(
                f"`score` of {name} is not the derivative of its `log_prob` with respect to theta: "
                f"{difference}. Estimates from it may be biased."
            )


def _difference(score: np.ndarray, derivative: np.ndarray) -> str | None:
    """The largest difference in words, or None if rounding explains it."""
    if score.shape != derivative.shape:
        return f"shape {score.shape} in place of {derivative.shape}"
    comparable = np.isfinite(derivative)
    score, derivative = score[comparable], derivative[comparable]
    error = np.abs(score - derivative)
    if (error <= _TOLERANCE * np.abs(derivative).max(initial=1e-3)).all():
        return None
    worst = np.argmax(np.nan_to_num(error, nan=np.inf))
    return f"{score[worst]:.4g} in place of {derivative[worst]:.4g}"


def check_enumeration(dist: Distribution, b: tf.Tensor) -> None:
    """Raises a ValueError unless `log_prob`, `enumerate`, `mean` and `score` agree.

    Args:
        dist: a distribution.
        b: all its samples, `[samples, batch, *event]`.
    """
    name = type(dist).__name__
    p = tf.exp(dist.log_prob(b))
    total = tf.reduce_sum(p, 0).numpy()
    wrong = ~(np.abs(total - 1) < _TOLERANCE)
    if wrong.any():
        raise ValueError(
            f"the samples that `enumerate` of {name} lists must have probabilities that add up to "
            f"1. By its `log_prob` they add up to {total[wrong].flat[0]:.4g}."
        )
    mean, expected = _mean(dist), tf.reduce_sum(over_event(p, b) * b, 0)
    if mean is not None and not np.allclose(mean, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
        raise ValueError(
            f"`mean` of {name} must be the mean of its samples. Received: {mean.numpy().tolist()} "
            f"in place of {expected.numpy().tolist()}"
        )
    for state in b[:: 1 + (len(b) - 1) // _STATES]:
        found = scores(dist, state)
        if found:
            check_scores(name, found)


def _mean(dist: Distribution) -> tf.Tensor | None:
    try:
        return dist.mean()
    except NotImplementedError:
        return None
