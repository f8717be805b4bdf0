"""Flip: ReinMax's estimate, corrected at one random coordinate.

ReinMax knows every coordinate's gradient but for the error of the trapezoid rule. The exact error
of one coordinate takes one more evaluation of the cost, at the sample with that one flipped; drawn
at random and weighted, it makes all of them unbiased.
"""

from typing import NamedTuple

import keras
import tensorflow as tf

from relax_tf.control_variates import by_backpropagation
from relax_tf.distributions.base import Distribution, over_event, sum_event
from relax_tf.estimators.base import Estimator
from relax_tf.estimators.estimate import Cost, evaluate_cost


def trapezoid_error(
    b: tf.Tensor,
    neighbour: tf.Tensor,
    f_b: tf.Tensor,
    f_neighbour: tf.Tensor,
    df_db: tf.Tensor,
    df_dneighbour: tf.Tensor,
) -> tf.Tensor:
    """`f(b) - f(b') - (1/2) (f'(b) + f'(b')) . (b - b')`, `[batch]`.

    What the trapezoid rule gets wrong between two samples: 0 where the cost is quadratic on the
    line between them.
    """
    return f_b - f_neighbour - 0.5 * sum_event((df_db + df_dneighbour) * (b - neighbour))


def flip_gradient(
    dist: Distribution,
    b: tf.Tensor,
    neighbour: tf.Tensor,
    weight: tf.Tensor,
    f_b: tf.Tensor,
    f_neighbour: tf.Tensor,
    df_db: tf.Tensor,
    df_dneighbour: tf.Tensor,
) -> tf.Tensor:
    """ReinMax's estimate and the correction of one coordinate, per example:

        trapezoid(df/db)  +  weight {f(b) - f(b') - (1/2) (f'(b) + f'(b')) . d} d,    d = b - b'

    where `b'` is `b` with one coordinate j changed. For Bernoulli variables, with `v = p (1 - p)`,

        g_i = (1/2) |b_i - p_i| f'_i(b)
              + [i = j] (v_j / q_j) {s_j (f(b) - f(b')) - (1/2) (f'_j(b) + f'_j(b'))},  s = 2 b - 1

    Unbiased for every function `f'`: given the other coordinates, the first term has the mean
    `v_i (f'_i(1) + f'_i(0)) / 2` (`Bernoulli.trapezoid_vjp`), and the braces, which are the same
    for both values of `b_j`, are `f(1) - f(0)` less exactly that; `1 / q_j` makes up for the
    coordinates that were not drawn. For one-hot variables the same holds of each pair of classes.
    So a derivative that is wrong, as in a cost with jumps, costs variance and never bias.

    Args:
        dist: the distribution, theta of shape `[batch, *event]`.
        b: samples `[batch, *event]`.
        neighbour, weight: `b'`, `[batch, *event]`, and `[batch]`, from `dist.neighbour(b)`.
        f_b, f_neighbour: the cost at both, `[batch]`.
        df_db, df_dneighbour: its derivative, or any other function of the sample,
            `[batch, *event]`.

    Returns:
        The shape of theta. Unbiased.
    """
    error = trapezoid_error(b, neighbour, f_b, f_neighbour, df_db, df_dneighbour)
    step = dist.score(b) - dist.score(neighbour)  # of the indicators
    return dist.trapezoid_vjp(b, df_db) + over_event(weight * error, step) * step


class EvaluatedCost(NamedTuple):
    """A cost whose derivative at the sample is known already."""

    cost: Cost
    df_db: tf.Tensor | None

    def __call__(self, sample: tf.Tensor) -> tf.Tensor:
        return self.cost(sample)


def finite_slopes(slopes: tf.Tensor) -> tf.Tensor:
    """The slopes with 0 for those that are NaN or infinite, as `sqrt`'s is at 0."""
    return tf.where(tf.math.is_finite(slopes), slopes, tf.zeros_like(slopes))


@keras.saving.register_keras_serializable("relax_tf")
class Flip(Estimator):
    """Flip: ReinMax, made unbiased by one flipped coordinate.

    Unbiased. Two evaluations of the cost, both at hard samples, where it must have a derivative;
    any derivative: jumps, kinks, rounding and stopped gradients cost variance and never bias. No
    temperature, no network, nothing to learn. For discrete variables; see `flip_gradient`. The
    coordinate is drawn from nine tenths of a distribution proportional to each variable's
    variance `p (1 - p)` and one tenth of the uniform one.

    In a model the second evaluation is a replay in which layers downstream keep their noise and
    emit hard samples; slopes lead through those by the trapezoid rule.

    Raises:
        ValueError: from `estimate`, if the cost has no gradient at all.

    Example: the derivative does not see the step that rounding makes, the estimate does.

    >>> estimator = relax_tf.estimators.get("flip")
    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([20_000, 1]))
    >>> cost = lambda b: (b[:, 0] - 0.45) ** 2 + tf.round(0.7 * b[:, 0])
    >>> mean = float(tf.reduce_mean(estimator.estimate(dist, cost, seed=0).gradient))
    >>> abs(mean - (0.1 + 1) / 4) < 0.005
    True
    """

    defined_for = ("discrete",)
    replay = "sloped"

    @property
    def evaluations(self) -> int:
        return 2

    def _estimate(self, dist, draw, cost, context, seed):
        sample = self.emit(dist, draw)
        f_b, df_db = by_backpropagation(lambda b: evaluate_cost(cost, b, dist), sample)
        evaluated = EvaluatedCost(cost, df_db)
        estimate = self.estimate_at(dist, draw, sample, f_b, evaluated, context, seed)
        self.observe(f_b, context)
        return estimate

    def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
        if isinstance(cost, EvaluatedCost):
            df_db = cost.df_db
        else:
            _, df_db = by_backpropagation(cost, draw.b)
        neighbour, weight = dist.neighbour(draw.b, seed)
        f_neighbour, df_dneighbour = by_backpropagation(
            lambda b: evaluate_cost(cost, b, dist), neighbour
        )
        if df_db is None or df_dneighbour is None:
            raise ValueError(
                f"estimator {self.name!r} ({type(self).__name__}) differentiates the cost at hard "
                "samples, but the cost has no gradient with respect to its sample. For a black-box "
                "cost use estimator='relaxed_disarm' (binary variables) or 'relax', which learn "
                "their slopes."
            )
        slopes = finite_slopes(df_db), finite_slopes(df_dneighbour)
        gradient = flip_gradient(dist, draw.b, neighbour, weight, f_b, f_neighbour, *slopes)
        return gradient, None
