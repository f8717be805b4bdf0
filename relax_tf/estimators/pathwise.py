"""Estimators that backpropagate through the sample they emit.

| estimator            | forward value | backward path | biased | distributions |
|----------------------|---------------|---------------|--------|---------------|
| `reparameterization` | `z`           | `z`           | no     | continuous    |
| `concrete`           | relaxed       | relaxed       | yes    | discrete      |
| `straight_through`   | hard          | relaxed       | yes    | discrete      |
| `reinmax`            | hard          | trapezoid     | yes    | discrete      |
"""

from typing import Any

import keras
import tensorflow as tf

from relax_tf.distributions.base import Distribution, Draw
from relax_tf.estimators.base import Estimator
from relax_tf.estimators.black_box import crosses_numpy_function
from relax_tf.estimators.estimate import Estimate, evaluate_cost, package
from relax_tf.validation import positive_if_number, positive_number


def pathwise_gradient(dist: Distribution, z: tf.Tensor, df_dz: tf.Tensor) -> Any:
    """`(dz / d theta)^T df/dz`, per example (eq. 3, and eq. 4 if `f` is read at `relax(z)`).

    Args:
        dist: the distribution, theta of shape `[batch, *event]`.
        z: the reparameterised variable, `[batch, *event]`.
        df_dz: the derivative of each example's cost with respect to its own `z`.

    Returns:
        The shape (structure) of theta. Where `f` is read at `relax(z)` it is the gradient of
        `E[f(relax(z))]`, not of `E[f(b)]`.
    """
    return dist.reparameterization_vjp(z, df_dz)


class PathwiseEstimator(Estimator):
    """Base of the estimators whose emitted sample carries a gradient, through z, to theta.

    A subclass says what it emits; `hard`, `unbiased` and `relies_on_derivative` say what that is.

    Example: the relaxed sample itself, at a fixed temperature, a small `concrete`.

    >>> class Relaxed(relax_tf.estimators.PathwiseEstimator):
    ...     defined_for, unbiased, hard = ("discrete",), False, False
    ...
    ...     def emit(self, dist, draw):
    ...         return dist.relax(draw.z, 0.5)
    >>> inputs = keras.Input([4])
    >>> b = relax_tf.StochasticBinaryLayer(3, Relaxed())(inputs)
    >>> model = relax_tf.RelaxModel(inputs, b)
    >>> model.compile("sgd", loss="mse")
    >>> history = model.fit(tf.ones([8, 4]), tf.ones([8, 3]), verbose=0)
    """

    needs_cost = False

    def _estimate(self, dist, draw, cost, context, seed) -> Estimate:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(draw.z)
            sample = self.emit(dist, draw)
            f_b = evaluate_cost(cost, sample, dist)
        gradient = self.estimate_on_path(dist, draw.z, f_b, tape.gradient(f_b, draw.z))
        return package(dist, sample, f_b, gradient)

    def estimate_on_path(
        self, dist: Distribution, z: tf.Tensor, f_b: tf.Tensor, df_dz: tf.Tensor | None
    ) -> Any:
        """The gradient per example, given what backpropagation brought from `f_b` to `z`."""
        if df_dz is None or crosses_numpy_function(z, f_b):
            black_box = "relax" if dist.discrete else "lax"
            raise ValueError(
                f"estimator {self.id!r} backpropagates through the cost, "
                "but the cost has no gradient with respect to its sample (perhaps it does "
                "not depend on it at all). Use "
                f"estimator={black_box!r} (or 'reinforce'), which ask nothing of the cost."
            )
        return tf.nest.map_structure(tf.stop_gradient, pathwise_gradient(dist.detached(), z, df_dz))


@keras.saving.register_keras_serializable("relax_tf")
class Reparameterization(PathwiseEstimator):
    """The pathwise estimator of continuous variables: `df/dz dz/d theta` (eq. 3).

    Unbiased. One evaluation of the cost, which must be differentiable in the sample. For
    continuous distributions. Kingma & Welling 2014; Rezende et al. 2014.

    Example:

    >>> dist = relax_tf.distributions.Normal(tf.zeros([1, 2]), tf.ones([1, 2]))
    >>> estimator = relax_tf.estimators.Reparameterization()
    >>> d_loc, d_scale = estimator.estimate(dist, lambda b: tf.reduce_sum(3 * b, -1)).gradient
    >>> d_loc.numpy().tolist()
    [[3.0, 3.0]]
    """

    defined_for = ("continuous",)
    asks_for = ("reparameterization_vjp",)
    relies_on_derivative = True

    def emit(self, dist: Distribution, draw: Draw) -> tf.Tensor:
        del dist
        return draw.z


class RelaxingEstimator(PathwiseEstimator):
    """Base of the pathwise estimators of discrete variables, which differentiate `relax(z)`."""

    defined_for = ("discrete",)
    asks_for = ("relax", "reparameterization_vjp")
    unbiased = False

    def __init__(self, temperature: float = 0.5, **kwargs):
        super().__init__(**kwargs)
        self._initial_temperature = positive_number(temperature, "temperature")
        # A weight and not a number, so that a callback may anneal it during `fit`.
        self._temperature = self.add_weight(
            name="temperature",
            shape=(),
            initializer=keras.initializers.Constant(temperature),
            trainable=False,
        )

    @property
    def temperature(self) -> tf.Tensor:
        return tf.convert_to_tensor(self._temperature)

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature.assign(positive_if_number(value, "temperature"))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self._initial_temperature}


@keras.saving.register_keras_serializable("relax_tf")
class Concrete(RelaxingEstimator):
    """The Concrete (Gumbel-softmax) relaxation in place of the sample (eq. 4).

    Biased: it follows the gradient of the relaxed cost `E[f(relax(z))]`, and in training the
    cost that it reports is that of the relaxed sample. One evaluation of the cost, which must be
    differentiable at relaxed samples. Maddison et al. 2017; Jang et al. 2017.

    Args:
        temperature: of the relaxation `sigmoid(z / temperature)`. `estimator.temperature = t`
            changes it later, also during `fit`.

    Example:

    >>> estimator = relax_tf.estimators.Concrete(temperature=0.7)
    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([1, 2]))
    >>> sample = estimator.estimate(dist, lambda b: tf.reduce_sum(b, -1), seed=0).sample
    >>> bool(tf.reduce_all((0 < sample) & (sample < 1)))
    True
    """

    hard = False

    def emit(self, dist: Distribution, draw: Draw) -> tf.Tensor:
        return dist.relax(draw.z, tf.cast(self.temperature, dist.dtype))


@keras.saving.register_keras_serializable("relax_tf")
class StraightThrough(RelaxingEstimator):
    """A hard sample forward, the relaxed one's gradient backward (straight-through Concrete).

    Biased. One evaluation of the cost, which must be differentiable at the hard sample. Bengio
    et al. 2013; Jang et al. 2017.

    Args:
        temperature: of the relaxation that is differentiated; may be changed during `fit`.

    Example:

    >>> estimator = relax_tf.estimators.StraightThrough()
    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([1, 2]))
    >>> estimate = estimator.estimate(dist, lambda b: tf.reduce_sum(b, -1), seed=0)
    >>> bool(tf.reduce_all((estimate.sample == 0) | (estimate.sample == 1)))
    True
    """

    def emit(self, dist: Distribution, draw: Draw) -> tf.Tensor:
        relaxed = dist.relax(draw.z, tf.cast(self.temperature, dist.dtype))
        return tf.stop_gradient(draw.b) + (relaxed - tf.stop_gradient(relaxed))


@keras.saving.register_keras_serializable("relax_tf")
class Reinmax(PathwiseEstimator):
    """ReinMax: a hard sample forward, second-order accurate backward (Liu et al. 2023).

    The exact gradient of a unit is `p (1 - p) E[f(1) - f(0)]`, the other units at random. The
    trapezoid rule has `(f'(1) + f'(0)) / 2` for the difference, and one hard sample shows one of
    the two derivatives, so per coordinate, for Bernoulli variables and for one-hot ones:

        (1/2) |b - p| df/db
        (1/2) [(b - p) ((b - p) . df/db) + (diag(p) - p p^T) df/db]

    What `straight_through` should have been: no temperature, and the cost never sees a value
    outside of the support. Biased, by the error of the trapezoid rule: none for a cost that is
    quadratic in each coordinate (whatever products of different coordinates there are), little
    for a smooth one, but more than `straight_through`'s for one that oscillates between the
    values of the support: of `sin(2 pi b)` it sees the slope at 0 and 1, and no difference. `flip`
    removes the bias with one evaluation more.

    One evaluation of the cost, which must have a derivative at hard samples. For discrete
    variables. Trains in any Keras model.

    Raises:
        ValueError: from `estimate`, if the cost has no gradient.

    Example: a quadratic cost, whose gradient is `p (1 - p) (1 - 2 * 0.45)`.

    >>> estimator = relax_tf.estimators.get("reinmax")
    >>> dist = relax_tf.distributions.Bernoulli(tf.zeros([20_000, 1]))
    >>> estimate = estimator.estimate(dist, lambda b: (b[:, 0] - 0.45) ** 2, seed=0)
    >>> abs(float(tf.reduce_mean(estimate.gradient)) - 0.1 / 4) < 0.005
    True
    """

    defined_for = ("discrete",)
    asks_for = ("trapezoid_vjp",)
    unbiased = False

    def emit(self, dist: Distribution, draw: Draw) -> tf.Tensor:
        return dist.sloped(draw.z)
