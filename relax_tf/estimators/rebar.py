"""REBAR and the paper's VAE estimator: equation 10 with the relaxed cost as control variate."""

import math
from typing import Any

import keras
import tensorflow as tf

from relax_tf.control_variates import build_network
from relax_tf.distributions.base import Distribution
from relax_tf.estimators.base import Estimator
from relax_tf.estimators.black_box import PythonDetector
from relax_tf.estimators.estimate import Cost
from relax_tf.estimators.families import asked_by_equation_10
from relax_tf.estimators.networks import network_config, network_or_mlp, with_networks
from relax_tf.estimators.relax import discrete_gradient
from relax_tf.estimators.terms import Term, network_output, relaxed_cost
from relax_tf.validation import boolean, positive_number, real_number


@keras.saving.register_keras_serializable("relax_tf")
class Rebar(Estimator):
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

    defined_for = ("discrete",)
    replay = "relaxed"
    relies_on_derivative = True

    def __init__(
        self, temperature: float = 0.5, scale: float = 1.0, coupled: bool = True, **kwargs
    ):
        super().__init__(**kwargs)
        self.coupled = boolean(coupled, "coupled")
        self._initial_temperature = positive_number(temperature, "temperature")
        self._initial_scale = real_number(scale, "scale")
        self._hides_python = PythonDetector()

    @property
    def asks_for(self) -> tuple[str, ...]:
        return asked_by_equation_10(self.coupled)

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

    def terms(self, dist: Distribution, cost: Cost, context: tf.Tensor | None) -> list[Term]:
        """The control variate, as functions from `z` to `[batch]`."""
        temperature, scale = (tf.cast(v, dist.dtype) for v in (self.temperature, self.scale))
        return [relaxed_cost(dist, cost, temperature, scale, self._hides_python, self.id)]

    def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
        terms = self.terms(dist, cost, context)
        return discrete_gradient(dist, draw, f_b, terms, self.coupled, seed), None

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "temperature": self._initial_temperature,
            "scale": self._initial_scale,
            "coupled": self.coupled,
        }


@keras.saving.register_keras_serializable("relax_tf")
class RelaxedRebar(Rebar):
    """The paper's VAE estimator: `c(z) = eta f(relax(z, lambda)) + r_phi(z, context)`.

    Unbiased. Costs and demands of `Rebar`, whose control variate it starts from; the network of
    `Relax` learns what the relaxation misses.

    Args:
        temperature, scale: as in `Rebar`.
        control_variate: as in `Relax`, but it sees `z` itself.
        coupled: as in `Rebar`.

    Example:

    >>> estimator = relax_tf.estimators.get("relaxed_rebar")
    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([4, 1]))
    >>> estimate = estimator.estimate(dist, lambda b: tf.reduce_sum((b - 0.45) ** 2, -1), seed=0)
    >>> len(estimator.trainable_variables)
    8
    """

    def __init__(
        self,
        temperature: float = 0.5,
        scale: float = 1.0,
        control_variate: keras.layers.Layer | None = None,
        coupled: bool = True,
        **kwargs,
    ):
        super().__init__(temperature, scale, coupled, **kwargs)
        self._is_default = control_variate is None
        self.control_variate = network_or_mlp(control_variate, "control_variate", self.dtype_policy)

    def build(self, theta_shape, context_shape=None):
        build_network(self.control_variate, theta=theta_shape, context=context_shape)
        super().build(theta_shape, context_shape)

    @property
    def given_network(self):
        return None if self._is_default else self.control_variate

    def network_terms(self, dist, context):
        network = self.control_variate
        return [network_output(network, dist.zero_where_fixed, context, 1.0, self.id)]

    def terms(self, dist, cost, context):
        """The control variate, as functions from `z` to `[batch]`."""
        return [*super().terms(dist, cost, context), *self.network_terms(dist, context)]

    def get_config(self) -> dict[str, Any]:
        network = network_config(self.control_variate, self._is_default)
        return {**super().get_config(), "control_variate": network}

    @classmethod
    def from_config(cls, config):
        return cls(**with_networks(config, "control_variate"))
