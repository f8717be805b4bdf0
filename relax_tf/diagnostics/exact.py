"""Exact gradients by enumeration, and the numerical check of unbiasedness the paper asks for."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from relax_tf import estimators
from relax_tf.distributions.base import Distribution, over_event
from relax_tf.distributions.consistency import check_enumeration, is_foreign
from relax_tf.distributions.noise import fold_in, make_seed
from relax_tf.estimators import Estimator
from relax_tf.estimators.estimate import Cost, check_problem, evaluate_cost
from relax_tf.validation import integer_of_at_least, positive_number


def exact_gradient(dist: Distribution, cost: Cost) -> tf.Tensor:
    """`sum_b p(b|theta) f(b) d log p(b|theta) / d theta`, by enumerating every sample.

    Args:
        dist: a discrete distribution, theta of shape `[batch, *event]`, with at most 2 ** 16
            different samples of one event.
        cost: from samples `[samples, batch, *event]` to `[samples, batch]`.

    Returns:
        The gradient of `E[f(b)]` through the sample, per example, shape of theta: what
        `Estimate.gradient` estimates.

    Raises:
        TypeError: if `dist` is not a distribution or `cost` is not callable.
        ValueError: if the distribution has too many samples or none that can be listed; if the
            `score`, the `log_prob`, the `mean` and the `enumerate` of one of your own do not agree;
            if the cost of a sample depends on how many there are.

    Example:

    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([1, 2]))
    >>> relax_tf.diagnostics.exact_gradient(dist, lambda b: tf.reduce_sum(b, -1)).numpy()
    array([[0.25, 0.25]], dtype=float32)
    """
    check_problem(dist, cost)
    states = dist.enumerate()
    b = tf.broadcast_to(
        states[:, tf.newaxis], tf.concat([tf.shape(states)[:1], tf.shape(dist.theta)], 0)
    )
    f_b = evaluate_cost(cost, b, dist)
    if tf.executing_eagerly():
        some = len(states) // 2
        _check_axes(cost, b[some], f_b[some], 1e-3 * np.abs(f_b).max(initial=0))
        if is_foreign(dist):
            check_enumeration(dist, b)
    weight = tf.exp(dist.log_prob(b)) * f_b
    return tf.reduce_sum(over_event(weight, b) * dist.score(b), 0)


def _check_axes(cost: Cost, one: tf.Tensor, f_b: tf.Tensor, rounding: float) -> None:
    """Raises a ValueError if a sample `[batch, *event]` by itself has another cost `[batch]`.

    Where events are as long as batches, no shape tells that a cost reduces the wrong axes. One that
    takes several samples only is fine.
    """
    try:
        alone, again = (tf.cast(tf.convert_to_tensor(cost(one)), f_b.dtype) for _ in range(2))
    except Exception:
        return
    if alone.shape != f_b.shape or not np.array_equal(alone, again):
        return
    if not np.allclose(alone, f_b, rtol=1e-3, atol=rounding, equal_nan=True):
        raise ValueError(
            "the cost of a sample `[batch, *event]` is another one among several, `[samples, "
            "batch, *event]`: it must reduce the axes of the event, counted from the end "
            f"(axis=-1), and keep those in front. Received: {f_b.numpy().tolist()} in place of "
            f"{alone.numpy().tolist()}"
        )


class Certificate(NamedTuple):
    """What `check_unbiased` found.

    Attributes:
        unbiased: whether every coordinate's |z| is below the threshold (of few draws, Student's
            t). A small bias takes many draws to be seen: `concrete` and `reinmax` may pass with
            few.
        z_scores: how many standard errors the mean estimate is from the exact gradient.
        mean, standard_error: of the estimates.
        exact: the exact gradient.
        variance: of one estimate; its sum over coordinates is what estimators are compared by. All
            five are NumPy arrays in the structure of theta.
    """

    unbiased: bool
    z_scores: Any
    mean: Any
    standard_error: Any
    exact: Any
    variance: Any


def check_unbiased(
    estimator: Estimator | str,
    dist: Distribution,
    cost: Cost,
    num_draws: int = 20_000,
    context: tf.Tensor | None = None,
    exact: Any = None,
    threshold: float = 4.0,
    seed: Any = 0,
) -> Certificate:
    """Compares the mean of many estimates with the exact gradient.

    A verdict has the power that its standard error gives it: it finds a bias of several standard
    errors and misses smaller ones, and whatever a few roundings of the largest cost would explain.
    It is right once the draws have met the values that matter: of an event that none of them met
    an estimator knows nothing. `vimco` estimates the gradient of its bound, so it takes
    `exact=...`.

    Args:
        estimator: an Estimator with its variables as they are; train or shake them first, at
            their initial values terms may vanish. Or the id of one, with initial values.
        dist, cost, context: as in `Estimator.estimate`.
        num_draws: number of estimates, at least 2.
        exact: the exact gradient, in the structure of theta; by default
            `exact_gradient(dist, cost)`, which a continuous distribution does not have.
        threshold: of |z|, for the verdict.
        seed: of all draws.

    Raises:
        TypeError: for a wrong type of estimator, distribution or cost.
        ValueError: if a number is out of its range, `exact` has another shape than theta, or
            there is no `exact` and none can be computed.

    Example:

    >>> dist = relax_tf.distributions.Bernoulli(tf.constant([[0.3, -1.0]]))
    >>> cost = lambda b: tf.reduce_sum((b - 0.4) ** 2, -1)
    >>> estimator = relax_tf.estimators.get("rebar")
    >>> relax_tf.diagnostics.check_unbiased(estimator, dist, cost, num_draws=2000).unbiased
    True
    """
    num_draws = integer_of_at_least(2, num_draws, "num_draws")
    threshold = positive_number(threshold, "threshold")
    estimator = estimators.get(estimator)
    check_problem(dist, cost)
    if exact is None and not dist.discrete:
        raise ValueError(
            f"the samples of {type(dist).__name__} cannot be enumerated: compute the exact "
            "gradient yourself and pass `exact=...`. Received: exact=None"
        )
    exact = exact_gradient(dist, cost) if exact is None else exact
    _check_like_theta(exact, dist)
    seed = make_seed(seed)
    estimator.estimate(dist, cost, context=context, seed=seed)  # builds it, outside the loop

    leaves = tf.nest.map_structure(lambda leaf: tf.cast(leaf, tf.float64), tf.nest.flatten(exact))

    @tf.function(autograph=False)
    def moments():
        def body(draw, size, totals, squares):
            estimate = estimator.estimate(dist, cost, context=context, seed=fold_in(seed, draw))
            gradients = tf.nest.flatten(estimate.gradient)
            # Relative to the exact gradient, so that the squares do not cancel.
            errors = [tf.cast(g, tf.float64) - e for g, e in zip(gradients, leaves, strict=True)]
            return (
                draw + 1,
                tf.maximum(size, tf.cast(tf.reduce_max(tf.abs(estimate.cost)), tf.float64)),
                [total + error for total, error in zip(totals, errors, strict=True)],
                [square + error**2 for square, error in zip(squares, errors, strict=True)],
            )

        zeros = [tf.zeros_like(leaf) for leaf in leaves]
        none = tf.constant(0.0, tf.float64)
        return tf.while_loop(lambda draw, *_: draw < num_draws, body, (0, none, zeros, zeros))[1:]

    once = moments.get_concrete_function()  # TensorFlow warns of calls that trace, five at a time
    size, *sums = once()
    totals, squares = (np.stack(part) for part in sums)
    exact_stack = np.stack(leaves)
    error = totals / num_draws
    variance = np.maximum(squares - num_draws * error**2, 0) / (num_draws - 1)
    rounding = 8 * np.finfo(dist.dtype.as_numpy_dtype).eps * (size + np.abs(exact_stack))
    standard_error = np.maximum(np.sqrt(variance / num_draws), rounding)
    z_scores = error / standard_error

    def like_theta(stack):
        return tf.nest.pack_sequence_as(dist.theta, list(stack))

    return Certificate(
        unbiased=bool(_as_normal(np.abs(z_scores), num_draws - 1).max() < threshold),
        z_scores=like_theta(z_scores),
        mean=like_theta(exact_stack + error),
        standard_error=like_theta(standard_error),
        exact=like_theta(exact_stack),
        variance=like_theta(variance),
    )


def _as_normal(t: np.ndarray, degrees: int) -> np.ndarray:
    """The deviate of a normal distribution as unlikely as this one of Student's (Wallace 1959)."""
    factor = (8 * degrees + 1) / (8 * degrees + 3)
    return factor * np.sqrt(degrees * np.log1p(t**2 / degrees))


def _check_like_theta(exact: Any, dist: Distribution) -> None:
    shapes, expected = (
        [tuple(np.shape(leaf)) for leaf in tf.nest.flatten(tree)] for tree in (exact, dist.theta)
    )
    if shapes != expected:
        raise ValueError(f"`exact` must be like theta, of shape {expected}. Received: {shapes}")
