"""The control variate `c(z)`: a sum of terms, each with its derivative in `z`."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from relax_tf.control_variates import (
    by_backpropagation,
    differentiate_network,
    evaluate_network,
)
from relax_tf.distributions.base import Distribution
from relax_tf.estimators.black_box import PythonDetector
from relax_tf.estimators.estimate import Cost, evaluate_cost


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


def relaxed_cost(
    dist: Distribution,
    cost: Cost,
    temperature: tf.Tensor,
    scale: tf.Tensor,
    hides_python: PythonDetector,
    estimator_id: str,
) -> Term:
    """REBAR's `eta f(relax(z, lambda))`."""
    complaint = (
        f"estimator {estimator_id!r} differentiates the cost at relaxed "
        "samples, but the cost has no gradient with respect to its sample (perhaps it does "
        "not depend on it at all: in a model, is a loss compiled?). For a black-box "
        "cost use estimator='relax', whose control variate is a network alone."
    )

    def relaxed(z: tf.Tensor) -> tf.Tensor:
        sample = dist.relax(z, temperature)
        f_relaxed = evaluate_cost(cost, sample, dist)
        if hides_python(cost, sample, f_relaxed):
            raise ValueError(complaint)
        return scale * f_relaxed

    return Term(relaxed, complaint)


def network_output(
    network: keras.layers.Layer,
    see: Callable[[tf.Tensor], tf.Tensor],
    context: tf.Tensor | None,
    scale: float | tf.Tensor,
    estimator_id: str,
) -> Term:
    """RELAX's `s r_phi(see(z), context)`."""
    complaint = (
        f"the control variate of estimator {estimator_id!r} has no gradient with respect to its "
        "input, so it cannot follow z. Pass a layer that is differentiable in its input."
    )

    def r(z: tf.Tensor) -> tf.Tensor:
        return scale * evaluate_network(network, see(z), context)

    def differentiated(z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(z)
            seen = see(z)
        value, derivative = differentiate_network(network, seen, context)
        if derivative is not None:
            derivative = scale * tape.gradient(seen, z, output_gradients=derivative)
        return scale * value, derivative

    return Term(r, complaint, differentiated)
