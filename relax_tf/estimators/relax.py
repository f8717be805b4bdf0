"""RELAX, REBAR and LAX: equations 7 and 10, and the control variates that enter them.

| estimator       | control variate `c(z)`                                            |
|-----------------|-------------------------------------------------------------------|
| `lax`           | `m + s (B(context) + r_phi(b, context))`: continuous (eq. 7)      |
| `rebar`         | `eta f(relax(z, lambda))`, both scalars learned                   |
| `relax`         | `m + s (B(context) + r_phi(z, context))`: a black box             |
| `relaxed_rebar` | `eta f(relax(z, lambda)) + r_phi(z, context)`, the paper's VAE    |

`m` and `s` are the mean and the spread of past costs, `B` a baseline: see `baseline.py`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from relax_tf.control_variates import (
    MLP,
    build_network,
    by_backpropagation,
    differentiate_network,
    evaluate_network,
)
from relax_tf.distributions.base import Distribution
from relax_tf.estimators.base import Estimator
from relax_tf.estimators.baseline import BaselineEstimator
from relax_tf.estimators.black_box import PythonDetector
from relax_tf.estimators.estimate import Cost, batch_mean, evaluate_cost
from relax_tf.estimators.score_function import score_function_gradient
from relax_tf.validation import boolean, positive_number, real_number

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


class Term(NamedTuple):
    """One summand of a control variate, and the complaint if it has no gradient.

    `differentiate` returns value and derivative, where backpropagation is not the best way.
    """

    function: Callable[[tf.Tensor], tf.Tensor]
    without_gradient: str
    differentiate: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor | None]] | None = None


def value_and_derivative(terms: list[Term], z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`c(z)`, shape `[batch]`, and `dc/dz`, shape of `z`, of the sum of the terms."""
    values, derivatives = [], []
    for function, without_gradient, differentiate in terms:
        if differentiate is None:
            value, derivative = by_backpropagation(function, z)
        else:
            value, derivative = differentiate(z)
        if derivative is None:
            raise ValueError(without_gradient)
        values.append(value)
        derivatives.append(derivative)
    return tf.add_n(values), tf.add_n(derivatives)


class ControlVariateEstimator(Estimator):
    """Base of RELAX, REBAR and LAX: `c` is the sum of the class's terms."""

    def terms(self, dist: Distribution, cost: Cost, context: tf.Tensor | None) -> list[Term]:
        """The control variate, as functions from `z` to `[batch]`."""
        return []


class DiscreteControlVariateEstimator(ControlVariateEstimator):
    """Base of RELAX and REBAR: equation 10."""

    defined_for = ("discrete",)

    def __init__(self, coupled: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.coupled = boolean(coupled, "coupled")

    def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
        b, z = draw
        control_variate = self.terms(dist, cost, context)
        c_z, dc_dz = value_and_derivative(control_variate, z)
        if self.coupled:
            return relax_gradient(dist, b, f_b, z, dc_dz, z, c_z, dc_dz), None
        z_tilde = dist.conditional_draw(b, seed)
        c_z_tilde, dc_dz_tilde = value_and_derivative(control_variate, z_tilde)
        return relax_gradient(dist, b, f_b, z, dc_dz, z_tilde, c_z_tilde, dc_dz_tilde), None

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "coupled": self.coupled}


@keras.saving.register_keras_serializable("relax_tf")
class Rebar(DiscreteControlVariateEstimator):
    """REBAR: `c(z) = eta f(relax(z, lambda))`, both scalars learned (Tucker et al. 2017).

    Unbiased. One evaluation of the cost at the hard sample and one at the relaxed sample (two
    with `coupled=False`), where the cost must be differentiable.

    Args:
        temperature: initial `lambda`, learned through its logarithm.
        scale: initial `eta`.
        coupled: whether `z_tilde` shares the noise of `z` (eq. 11, in closed form) or has noise
            of its own. Both are unbiased; which has less variance depends on the problem.

    Raises:
        ValueError: from `estimate`, if the cost has no gradient at relaxed samples.

    Example:

    >>> estimator = relax_tf.estimators.Rebar(temperature=0.5)
    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([4, 1]))
    >>> estimate = estimator.estimate(dist, lambda b: tf.reduce_sum((b - 0.45) ** 2, -1), seed=0)
    >>> [variable.name for variable in estimator.trainable_variables]
    ['log_temperature', 'scale']
    """

    replay = "relaxed"
    relies_on_derivative = True

    def __init__(self, temperature: float = 0.5, scale: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self._initial_temperature = positive_number(temperature, "temperature")
        self._initial_scale = real_number(scale, "scale")
        self._hides_python = PythonDetector()

    @property
    def evaluations(self) -> int:
        return 2 if self.coupled else 3

    def build(self, theta_shape, context_shape=None):
        constant = keras.initializers.Constant
        self.log_temperature = self.add_weight(
            name="log_temperature",
            shape=(),
            initializer=constant(math.log(self._initial_temperature)),
        )
        self.scale = self.add_weight(
            name="scale", shape=(), initializer=constant(self._initial_scale)
        )
        super().build(theta_shape, context_shape)

    @property
    def temperature(self) -> tf.Tensor:
        return tf.exp(tf.convert_to_tensor(self.log_temperature))

    def terms(self, dist, cost, context):
        temperature = tf.cast(self.temperature, dist.dtype)
        scale = tf.cast(self.scale, dist.dtype)
        complaint = (
            f"estimator {self.id!r} differentiates the cost at relaxed "
            "samples, but the cost has no gradient with respect to its sample (perhaps it does "
            "not depend on it at all). For a black-box "
            "cost use estimator='relax', whose control variate is a network alone."
        )

        def relaxed_cost(z: tf.Tensor) -> tf.Tensor:
            relaxed = dist.relax(z, temperature)
            f_relaxed = evaluate_cost(cost, relaxed, dist)
            if self._hides_python(cost, relaxed, f_relaxed):
                raise ValueError(complaint)
            return scale * f_relaxed

        return [Term(relaxed_cost, complaint), *super().terms(dist, cost, context)]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "temperature": self._initial_temperature,
            "scale": self._initial_scale,
        }


class NetworkControlVariateEstimator(ControlVariateEstimator):
    """Base of the estimators that have a network `r_phi(z, context)` among their terms."""

    def __init__(self, control_variate: keras.layers.Layer | None = None, **kwargs):
        super().__init__(**kwargs)
        self._is_default = control_variate is None
        if self._is_default:
            control_variate = MLP(dtype=self.dtype_policy.name)
        if not isinstance(control_variate, keras.layers.Layer):
            raise TypeError(
                "`control_variate` must be a Keras layer or model. Received: "
                f"{control_variate!r} (of type {type(control_variate).__name__})"
            )
        self.control_variate = control_variate

    def build(self, theta_shape, context_shape=None):
        build_network(self.control_variate, theta=theta_shape, context=context_shape)
        super().build(theta_shape, context_shape)

    def network_input(self, dist: Distribution, z: tf.Tensor) -> tf.Tensor:
        """What the network sees of `z`: 0 in place of what infinite logits make of it."""
        return dist.zero_where_fixed(z)

    def network_scale(self, dtype: tf.DType) -> float | tf.Tensor:
        """The size of a cost that the network's output is a multiple of."""
        del dtype
        return 1.0

    def terms(self, dist, cost, context):
        network, scale = self.control_variate, self.network_scale(dist.dtype)

        def r(z: tf.Tensor) -> tf.Tensor:
            return scale * evaluate_network(network, self.network_input(dist, z), context)

        def differentiated(z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(z)
                seen = self.network_input(dist, z)
            value, derivative = differentiate_network(network, seen, context)
            if derivative is not None:
                derivative = scale * tape.gradient(seen, z, output_gradients=derivative)
            return scale * value, derivative

        complaint = (
            f"the control variate of estimator {self.id!r} has no gradient with respect to its "
            "input, so it cannot follow z. Pass a layer that is differentiable in its input."
        )
        return [Term(r, complaint, differentiated), *super().terms(dist, cost, context)]

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        network = keras.saving.serialize_keras_object(self.control_variate)
        return {**config, "control_variate": None if self._is_default else network}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if isinstance(config.get("control_variate"), dict):
            config["control_variate"] = keras.saving.deserialize_keras_object(
                config["control_variate"]
            )
        return cls(**config)


class BlackBoxControlVariateEstimator(BaselineEstimator, NetworkControlVariateEstimator):
    """Base of those whose control variate has to learn all from the values of the cost.

    `c = m + s (B(context) + r_phi(., context))`. A network alone must first climb to the level of
    the cost and is then busy following it; here past batches and a regression do that, quickly,
    and `r_phi` learns what depends on the sample. `r_phi` minimises the second moment, `B` its
    squared error; neither `m + s B` nor `s` depends on the sample, so all stays unbiased.
    """

    def network_scale(self, dtype):
        return self.baseline.scale(dtype)

    def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
        error = f_b - self.baseline.value(context, f_b.dtype)
        gradient = self.estimate_centred(dist, draw, tf.stop_gradient(error), cost, context, seed)
        return gradient, batch_mean(tf.square(error))

    def estimate_centred(self, dist, draw, f_b, cost, context, seed) -> Any:
        """The gradient, given costs less their baseline."""
        raise NotImplementedError


@keras.saving.register_keras_serializable("relax_tf")
class Relax(BlackBoxControlVariateEstimator, DiscreteControlVariateEstimator):
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

    def network_input(self, dist, z):
        return dist.relax(z, _INPUT_TEMPERATURE) - dist.mean()

    def estimate_centred(self, dist, draw, f_b, cost, context, seed):
        estimate_gradient = DiscreteControlVariateEstimator.estimate_gradient
        return estimate_gradient(self, dist, draw, f_b, cost, context, seed)[0]


@keras.saving.register_keras_serializable("relax_tf")
class Lax(BlackBoxControlVariateEstimator):
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

    def estimate_centred(self, dist, draw, f_b, cost, context, seed):
        c_b, dc_db = value_and_derivative(self.terms(dist, cost, context), draw.z)
        return lax_gradient(dist, draw.b, f_b, c_b, dc_db)


@keras.saving.register_keras_serializable("relax_tf")
class RelaxedRebar(Rebar, NetworkControlVariateEstimator):
    """The paper's VAE estimator: `c(z) = eta f(relax(z, lambda)) + r_phi(z, context)`.

    Unbiased. Costs and demands of `Rebar`, whose control variate it starts from; the network of
    `Relax` learns what the relaxation misses.

    Args:
        temperature, scale, coupled: as in `Rebar`.
        control_variate: as in `Relax`, but it sees `z` itself.

    Example:

    >>> estimator = relax_tf.estimators.get("relaxed_rebar")
    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([4, 1]))
    >>> estimate = estimator.estimate(dist, lambda b: tf.reduce_sum((b - 0.45) ** 2, -1), seed=0)
    >>> len(estimator.trainable_variables)
    8
    """
