"""RELAX and LAX: equations 7 and 10, and a control variate that knows the cost by its values.

| estimator       | control variate `c(z)`                                            |
|-----------------|-------------------------------------------------------------------|
| `lax`           | `m + s (B(context) + r_phi(b, context))`: continuous (eq. 7)      |
| `rebar`         | `eta f(relax(z, lambda))`, both scalars learned                   |
| `relax`         | `m + s (B(context) + r_phi(z, context))`: a black box             |
| `relaxed_rebar` | `eta f(relax(z, lambda)) + r_phi(z, context)`, the paper's VAE    |

`m` and `s` are the mean and the spread of past costs, `B` a baseline: see `baseline.py`. The terms
that depend on `z` are in `terms.py`, the estimators that relax the cost in `rebar.py`.
"""

import functools
from typing import Any

import keras
import tensorflow as tf

from relax_tf.control_variates import build_network
from relax_tf.distributions.base import Distribution, Draw
from relax_tf.estimators.base import Estimator
from relax_tf.estimators.baseline import Baseline
from relax_tf.estimators.estimate import Cost, batch_mean
from relax_tf.estimators.families import asked_by_equation_10
from relax_tf.estimators.networks import network_config, network_or_mlp, with_networks
from relax_tf.estimators.score_function import score_function_gradient
from relax_tf.estimators.terms import Term, network_output, value_and_derivative
from relax_tf.validation import boolean

_INPUT_TEMPERATURE = 0.5  # at which `relax`'s network sees z


def relax_gradient(
    dist: Distribution,
    b: tf.Tensor,
    f_b: tf.Tensor,
    z: tf.Tensor,
    dc_dz: tf.Tensor,
    z_tilde: tf.Tensor,
    c_z_tilde: tf.Tensor,
    dc_dz_tilde: tf.Tensor,
) -> Any:
    """Equation 10, per example:

        (f(b) - c(z_tilde)) d log p(b|theta)/d theta + d c(z)/d theta - d c(z_tilde)/d theta

    with `b = H(z)` and `z_tilde ~ p(z|b)`. Unbiased for every `c`, if `z_tilde` either has noise
    of its own or is coupled to `z` as in eq. 11: there it takes the *value* of `z`, while its
    dependence on theta is that of the conditional. So the coupled estimate is this function with
    `z_tilde = z`, and needs `c` and `dc/dz` at one point only.

    Args:
        dist: the distribution, theta of shape `[batch, *event]`.
        b, z, z_tilde: `[batch, *event]`.
        f_b, c_z_tilde: `[batch]`.
        dc_dz, dc_dz_tilde: derivatives of `c` in its argument, `[batch, *event]`; a direct
            dependence of `c` on theta is held constant.

    Returns:
        The shape (structure) of theta.
    """
    return tf.nest.map_structure(
        lambda score_term, z_term, z_tilde_term: score_term + z_term - z_tilde_term,
        score_function_gradient(dist, b, f_b - c_z_tilde),
        dist.reparameterization_vjp(z, dc_dz),
        dist.conditional_vjp(b, z_tilde, dc_dz_tilde),
    )


def lax_gradient(
    dist: Distribution, b: tf.Tensor, f_b: tf.Tensor, c_b: tf.Tensor, dc_db: tf.Tensor
) -> Any:
    """Equation 7, per example, for a continuous and reparameterisable `b`:

        (f(b) - c(b)) d log p(b|theta)/d theta + d c(b)/d theta

    Unbiased for every `c`.

    Args:
        dist: the distribution, theta of shape `[batch, *event]`.
        b: samples `[batch, *event]`.
        f_b, c_b: `[batch]`.
        dc_db: the derivative of `c` in its argument, `[batch, *event]`; a direct dependence of `c`
            on theta is held constant.

    Returns:
        The shape (structure) of theta.
    """
    return tf.nest.map_structure(
        tf.add,
        score_function_gradient(dist, b, f_b - c_b),
        dist.reparameterization_vjp(b, dc_db),
    )


def discrete_gradient(
    dist: Distribution,
    draw: Draw,
    f_b: tf.Tensor,
    terms: list[Term],
    coupled: bool,
    seed: tf.Tensor,
) -> Any:
    """Equation 10 for `c` the sum of the terms, with `z_tilde` coupled to `z` or drawn anew."""
    b, z = draw
    c_z, dc_dz = value_and_derivative(terms, z)
    if coupled:
        return relax_gradient(dist, b, f_b, z, dc_dz, z, c_z, dc_dz)
    z_tilde = dist.conditional_draw(b, seed)
    c_z_tilde, dc_dz_tilde = value_and_derivative(terms, z_tilde)
    return relax_gradient(dist, b, f_b, z, dc_dz, z_tilde, c_z_tilde, dc_dz_tilde)


class BlackBoxEstimator(Estimator):
    """Base of RELAX and LAX, whose control variate has to learn all from the values of the cost.

    `c = m + s (B(context) + r_phi(., context))`. A network alone must first climb to the level of
    the cost and is then busy following it; here past batches and a regression do that, quickly,
    and `r_phi` learns what depends on the sample. `r_phi` minimises the second moment, `B` its
    squared error; neither `m + s B` nor `s` depends on the sample, so all stays unbiased.
    """

    def __init__(
        self,
        control_variate: keras.layers.Layer | None = None,
        baseline: keras.layers.Layer | None = None,
        decay: float = 0.99,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self._is_default = control_variate is None
        self.control_variate = network_or_mlp(control_variate, "control_variate", self.dtype_policy)
        self.baseline = Baseline(baseline, decay, [64], dtype=self.dtype_policy, name="baseline")

    def build(self, theta_shape, context_shape=None):
        self.baseline.build(context_shape)
        build_network(self.control_variate, theta=theta_shape, context=context_shape)
        super().build(theta_shape, context_shape)

    def see(self, dist: Distribution, z: tf.Tensor) -> tf.Tensor:
        """What the network sees of `z`."""
        raise NotImplementedError

    def gradient(
        self, dist: Distribution, draw: Draw, f_b: tf.Tensor, terms: list[Term], seed: tf.Tensor
    ) -> Any:
        """The gradient, given costs less their baseline."""
        raise NotImplementedError

    def terms(self, dist: Distribution, cost: Cost, context: tf.Tensor | None) -> list[Term]:
        """The control variate less its baseline, as functions from `z` to `[batch]`."""
        del cost
        return self.network_terms(dist, context)

    @property
    def given_network(self):
        return None if self._is_default else self.control_variate

    def network_terms(self, dist, context):
        scale, see = self.baseline.scale(dist.dtype), functools.partial(self.see, dist)
        return [network_output(self.control_variate, see, context, scale, self.id)]

    def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
        error = f_b - self.baseline.value(context, f_b.dtype)
        terms = self.terms(dist, cost, context)
        gradient = self.gradient(dist, draw, tf.stop_gradient(error), terms, seed)
        return gradient, batch_mean(tf.square(error))

    def observe(self, f_b, context):
        self.baseline.update(f_b)

    def get_config(self) -> dict[str, Any]:
        network = network_config(self.control_variate, self._is_default)
        return {**super().get_config(), "control_variate": network, **self.baseline.arguments()}

    @classmethod
    def from_config(cls, config):
        return cls(**with_networks(config, "control_variate", "baseline"))


@keras.saving.register_keras_serializable("relax_tf")
class Relax(BlackBoxEstimator):
    """RELAX with a free-form control variate, `c(z) = m + s (B(context) + r_phi(z, context))`.

    Unbiased (eq. 10), one evaluation of the cost, asks nothing of it: it may be a black box. For
    discrete distributions. `r_phi` is the control variate of the paper. It sees `z` through its
    relaxation at temperature 0.5, less the mean of the sample: bounded numbers that say what the
    draw adds to what the context tells. `m` and `s` are the mean and the standard deviation of
    past costs, `B` is a baseline that is fitted to the cost: they spare `r_phi` what does not
    depend on the sample. `B` minimises its squared error, which joins `control_variate_loss`.

    Args:
        control_variate: `r_phi`, a Keras layer or model from `[batch, features]` to `[batch, 1]`
            or `[batch]`, where the features are `relax(z) - E[b]` (in the support of the samples)
            and the context, flattened, side by side (a
            `relax_tf.control_variates.ControlVariate` has them apart). By default
            `relax_tf.control_variates.MLP()`.
        baseline: `B`, a Keras layer or model from the flattened context to `[batch, 1]` or
            `[batch]`. By default `relax_tf.control_variates.MLP([64])`. Without a context there
            is none.
        decay: in [0, 1), of `m` and `s`: the weight of a batch relative to the next one.
        coupled: as in `Rebar`.

    Example:

    >>> network = keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)])
    >>> estimator = relax_tf.estimators.Relax(control_variate=network)
    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([4, 3]))
    >>> estimate = estimator.estimate(dist, lambda b: tf.math.argmax(b, -1), seed=0)
    >>> len(estimator.trainable_variables)
    4
    """

    defined_for = ("discrete",)

    def __init__(
        self,
        control_variate: keras.layers.Layer | None = None,
        baseline: keras.layers.Layer | None = None,
        decay: float = 0.99,
        coupled: bool = True,
        **kwargs,
    ):
        super().__init__(control_variate, baseline, decay, **kwargs)
        self.coupled = boolean(coupled, "coupled")

    @property
    def asks_for(self) -> tuple[str, ...]:
        return asked_by_equation_10(self.coupled)

    def see(self, dist, z):
        return dist.relax(z, _INPUT_TEMPERATURE) - dist.mean()

    def gradient(self, dist, draw, f_b, terms, seed):
        return discrete_gradient(dist, draw, f_b, terms, self.coupled, seed)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "coupled": self.coupled}


@keras.saving.register_keras_serializable("relax_tf")
class Lax(BlackBoxEstimator):
    """LAX: RELAX for continuous variables, `c(b) = m + s (B(context) + r_phi(b, context))`.

    Unbiased (eq. 7), one evaluation of the cost, asks nothing of it: it may be a black box. For
    continuous distributions. Grathwohl et al. 2018.

    Args:
        control_variate, baseline, decay: as in `Relax`; the network sees `b` as it is.

    Example:

    >>> estimator = relax_tf.estimators.Lax()
    >>> dist = relax_tf.distributions.Normal(tf.zeros([4, 3]), tf.ones([4, 3]))
    >>> estimate = estimator.estimate(dist, lambda b: tf.round(b[:, 0]), seed=0)
    >>> d_loc, d_scale = estimate.gradient
    >>> d_scale.shape
    TensorShape([4, 3])
    """

    defined_for = ("continuous",)
    asks_for = ("reparameterization_vjp",)

    def see(self, dist, z):
        return dist.zero_where_fixed(z)

    def gradient(self, dist, draw, f_b, terms, seed):
        c_b, dc_db = value_and_derivative(terms, draw.z)
        return lax_gradient(dist, draw.b, f_b, c_b, dc_db)
