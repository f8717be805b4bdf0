"""MuProp: a first-order Taylor control variate at the mean (Gu, Levine, Sutskever & Mnih 2016)."""

from typing import Any

import keras
import tensorflow as tf

from relax_tf.distributions.base import Distribution, sum_event
from relax_tf.estimators.base import Estimator
from relax_tf.estimators.baseline import Baseline
from relax_tf.estimators.black_box import PythonDetector
from relax_tf.estimators.estimate import batch_mean, evaluate_cost
from relax_tf.estimators.networks import with_networks
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
    credit = taylor_remainder(dist, b, f_b, f_mu, df_dmu)
    return tf.nest.map_structure(
        tf.add, score_function_gradient(dist, b, credit), mean_vjp(dist, df_dmu)
    )


def taylor_remainder(
    dist: Distribution, b: tf.Tensor, f_b: tf.Tensor, f_mu: tf.Tensor, df_dmu: tf.Tensor
) -> tf.Tensor:
    """`f(b) - f(mu) - f'(mu) . (b - mu)`, `[batch]`; the arguments are `muprop_gradient`'s."""
    return f_b - f_mu - sum_event(df_dmu * (b - dist.mean()))


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

    Where there is a context, a baseline `s B(context)` foretells the remainder of the expansion,
    whose mean is not zero unless the cost is linear: the published results have such a baseline
    too. `B` is a network that minimises its squared error, `s` the standard deviation of past
    costs. Without a context there is none.

    Args:
        baseline: `B`, a Keras layer or model from the flattened context to `[batch, 1]` or
            `[batch]`. By default `relax_tf.control_variates.MLP()`.
        decay: in [0, 1), of `s`: the weight of a batch relative to the next one.

    Raises:
        TypeError: if `baseline` is not a Keras layer or `decay` not a number.
        ValueError: if `decay` is not in [0, 1); from `estimate`, if the cost has no gradient at
            the mean, if the baseline has no output of shape `[batch, 1]` or `[batch]`, or without
            a context after an earlier call had one.

    Example: a linear cost leaves no variance.

    >>> estimator = relax_tf.estimators.Muprop()
    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([1, 3]))
    >>> estimator.estimate(dist, lambda b: tf.reduce_sum(b, -1)).gradient.numpy()
    array([[0.25, 0.25, 0.25]], dtype=float32)
    """

    replay = "mean"
    learns_from_gradient = False

    def __init__(self, baseline: keras.layers.Layer | None = None, decay: float = 0.99, **kwargs):
        super().__init__(**kwargs)
        units = (200, 200)  # as `Nvil`'s
        self.baseline = Baseline(baseline, decay, units, dtype=self.dtype_policy, name="baseline")
        self._hides_python = PythonDetector()

    @property
    def evaluations(self) -> int:
        return 2

    def build(self, theta_shape, context_shape=None):
        self.baseline.build(context_shape)
        super().build(theta_shape, context_shape)

    def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
        mu = dist.mean()
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(mu)
            f_mu = evaluate_cost(cost, mu, dist)
        df_dmu = tape.gradient(f_mu, mu)
        if df_dmu is None or self._hides_python(cost, mu, f_mu):
            black_box = "relax" if dist.discrete else "lax"
            raise ValueError(
                f"estimator {self.id!r} differentiates the cost at the "
                "mean, but the cost has no gradient with respect to its sample (perhaps it does "
                "not depend on it at all). For a black-box "
                f"cost use estimator={black_box!r}, whose control variate is a network alone."
            )
        f_mu = tf.stop_gradient(f_mu) + self.baseline.correction(context, f_b.dtype)
        error = taylor_remainder(dist, draw.b, f_b, f_mu, df_dmu)
        return muprop_gradient(dist, draw.b, f_b, f_mu, df_dmu), batch_mean(tf.square(error))

    def observe(self, f_b, context):
        self.baseline.update(f_b)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.baseline.arguments()}

    @classmethod
    def from_config(cls, config):
        return cls(**with_networks(config, "baseline"))
