"""Flip's mathematics: ReinMax's estimate, and what one flipped coordinate tells of its error.

The trapezoid rule is exact for a cost that is quadratic in each coordinate. Its exact error in one
coordinate takes one more evaluation of the cost.
"""

import tensorflow as tf

from relax_tf.distributions.base import Distribution, over_event, sum_event


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


def curved_flip_gradient(
    dist: Distribution,
    b: tf.Tensor,
    neighbour: tf.Tensor,
    weight: tf.Tensor,
    f_b: tf.Tensor,
    f_neighbour: tf.Tensor,
    df_db: tf.Tensor,
    df_dneighbour: tf.Tensor,
    curvature: tf.Tensor,
    share: tf.Tensor,
) -> tf.Tensor:
    """`flip_gradient`, less the noise of each variable in its own first term.

    ReinMax's `(1/2) |b_i - p_i| f'_i(b)` depends on `b_i` strongly where `p_i` is near 0 or 1: the
    rare value has a large term. With a guess `k_i` of the curvature `f'_i(1) - f'_i(0)` there is
    another first term, `v_i {f'_i(b) - (b_i - 1/2) k_i}`, which does not depend on `b_i` at all
    where the guess is right. A mixture of the two, `m_i` of the latter, is corrected as either:

        g_i = (1 - m_i) (1/2) |b_i - p_i| f'_i(b) + m_i v_i {f'_i(b) - (b_i - 1/2) k_i}
              + [i = j] (v_j / q_j) {f(1) - f(0) - (1/2) (f'_j(1) + f'_j(0))
                                     - m_j (p_j - 1/2) (f'_j(1) - f'_j(0) - k_j)}

    Unbiased for all functions `f'`, and all `k` and `m` that do not depend on `b`: over the values
    of `b_i`, `p f'(1) + (1 - p) f'(0) = (1/2) (f'(1) + f'(0)) + (p - 1/2) (f'(1) - f'(0))`, and
    `b - 1/2` has the mean `p - 1/2`. The last line takes away the difference of the means.

    Of a one-hot variable, with the probabilities p, the second first term is
    `(diag(p) - p p^T) D(b)`, where `D_c(b) = f'(b) . (e_c - b) + k_bc / 2` foretells
    `f(e_c) - f(b)` and `k_cl` is a guess of the curvature `(f'(e_c) - f'(e_l)) . (e_c - e_l)`. It
    lacks the mean over b, and over `b' = e_l ~ p`, of `{f(b') - f(b) - D_l(b)} (b' - p)`. As b and
    b' may change places, that is the mean of

        (1/2) {f(b) - f(b') - (1/2) (f'(b) + f'(b')) . d} d
        + (1/2) {(f'(b) - f'(b')) . d - k} ((b + b') / 2 - p),    d = b - b',

    of which the former is `flip_gradient`'s correction, and the latter that of the other first
    term. For Bernoulli variables, `(b + b') / 2 = 1/2` at j, and it is the line above.

    Args:
        dist, b, neighbour, weight, f_b, f_neighbour, df_db, df_dneighbour: as in `flip_gradient`.
        curvature: `k`, in units of cost per step of the indicator squared, `[batch, *event]`. Of
            one-hot variables a number for each class: `k_cl` is the sum of those of c and l.
        share: `m`, in [0, 1], for each variable (`dist.per_variable`): `[batch, *event]` or, of
            one-hot variables, `[batch, *variables, 1]`.

    Returns:
        The shape of theta. Unbiased.
    """
    evaluations = (dist, b, neighbour, f_b, f_neighbour, df_db, df_dneighbour)
    correction = curved_correction(*evaluations, curvature, share)
    first, curved = dist.trapezoid_vjp(b, df_db), dist.curved_vjp(b, df_db, curvature)
    return first + share * (curved - first) + over_event(weight, correction) * correction


def curved_correction(
    dist: Distribution,
    b: tf.Tensor,
    neighbour: tf.Tensor,
    f_b: tf.Tensor,
    f_neighbour: tf.Tensor,
    df_db: tf.Tensor,
    df_dneighbour: tf.Tensor,
    curvature: tf.Tensor,
    share: tf.Tensor,
) -> tf.Tensor:
    """What `curved_flip_gradient` gives back in the variable that was drawn, but for its weight."""
    step = dist.score(b) - dist.score(neighbour)  # of the indicators
    error = trapezoid_error(b, neighbour, f_b, f_neighbour, df_db, df_dneighbour)
    unforeseen = seen_curvature(b, neighbour, df_db, df_dneighbour) - at_step(step, curvature)
    offset = 0.5 * changed(dist, step) * (dist.score(b) + dist.score(neighbour))
    return over_event(error, step) * step + over_event(unforeseen, step) * share * offset


def at_step(step: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """The sum of the values at the coordinates in which two samples differ, `[batch]`."""
    return sum_event(tf.abs(step) * values)


def changed(dist: Distribution, step: tf.Tensor) -> tf.Tensor:
    """1 for the variable in which two samples differ, else 0: the shape of `dist.per_variable`."""
    return tf.minimum(dist.per_variable(tf.abs(step)), 1)


def seen_curvature(
    b: tf.Tensor, neighbour: tf.Tensor, df_db: tf.Tensor, df_dneighbour: tf.Tensor
) -> tf.Tensor:
    """`(f'(b) - f'(b')) . (b - b')`, `[batch]`: of a Bernoulli variable, `f'_j(1) - f'_j(0)`."""
    return sum_event((b - neighbour) * (df_db - df_dneighbour))
