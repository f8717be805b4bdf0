"""MuProp: a first-order Taylor control variate at the mean (Gu, Levine, Sutskever & Mnih 2016)."""

from typing import Any

import keras
import tensorflow as tf

from relax_tf.distributions.base import Distribution, sum_event
from relax_tf.estimators.base import Estimator
from relax_tf.estimators.black_box import PythonDetector
from relax_tf.estimators.estimate import evaluate_cost
from relax_tf.estimators.score_function import score_function_gradient


def muprop_gradient(
    dist: Distribution, b: tf.Tensor, f_b: tf.Tensor, f_mu: tf.Tensor, df_dmu: tf.Tensor
) -> Any:
    """The estimator of Gu et al. 2016, per example, with `mu = E[b]`:

        (f(b) - f(mu) - f'(mu) . (b - mu)) d log p(b|theta)/d theta + (d mu/d theta)^T f'(mu)

    The last term is the expectation of what the linear term takes away, since
    `E[b d log p(b)/d theta] = d mu/d theta`. Unbiased, whatever `f_mu` and `df_dmu` are, as long
    as they do not depend on `b`.

    Args:
        dist: the distribution, theta of shape `[batch, *event]`.
        b: samples `[batch, *event]`.
        f_b, f_mu: `[batch]`.
        df_dmu: `[batch, *event]`.

    Returns:
        The shape (structure) of theta.
    """
    credit = f_b - f_mu - sum_event(df_dmu * (b - dist.mean()))
    return tf.nest.map_structure(
        tf.add, score_function_gradient(dist, b, credit), mean_vjp(dist, df_dmu)
    )


def mean_vjp(dist: Distribution, w: tf.Tensor) -> Any:
    """`(d mu / d theta)^T w` for `mu = E[b]`, the shape (structure) of theta."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(tf.nest.flatten(dist.theta))
        mu = dist.mean()
    return tape.gradient(
        mu, dist.theta, output_gradients=w, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )


@keras.saving.register_keras_serializable("relax_tf")
class Muprop(Estimator):
    """MuProp: the score function with the cost's Taylor expansion at the mean as control variate.

    Unbiased. One evaluation of the cost at the sample and one at the mean, where the cost must be
    differentiable. In a model, stochastic layers downstream emit their means in the second
    (Gu et al. 2016).

    Raises:
        ValueError: from `estimate`, if the cost has no gradient at the mean.

    Example: a linear cost leaves no variance.

    >>> estimator = relax_tf.estimators.Muprop()
    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([1, 3]))
    >>> estimator.estimate(dist, lambda b: tf.reduce_sum(b, -1)).gradient.numpy()
    array([[0.25, 0.25, 0.25]], dtype=float32)
    """

    replay = "mean"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._hides_python = PythonDetector()

    @property
    def evaluations(self) -> int:
        return 2

    def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
        mu = dist.mean()
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(mu)
            f_mu = evaluate_cost(cost, mu, dist)
        df_dmu = tape.gradient(f_mu, mu)
        if df_dmu is None or self._hides_python(cost, mu, f_mu):
            black_box = "relax" if dist.discrete else "lax"
            raise ValueError(
                f"estimator {self.name!r} ({type(self).__name__}) differentiates the cost at the "
                "mean, but the cost has no gradient with respect to its sample. For a black-box "
                f"cost use estimator={black_box!r}, whose control variate is a network alone."
            )
        return muprop_gradient(dist, draw.b, f_b, f_mu, df_dmu), None
