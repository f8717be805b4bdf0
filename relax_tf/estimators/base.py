"""The estimator classes' common ground: configuration, variables `phi`, and the call `estimate`.

The mathematics is in pure functions beside each class. Data flows one way: a draw, the cost of
its sample, the gradient, and what `phi` minimises.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from relax_tf.control_variates import mark_control_variates
from relax_tf.distributions.base import Distribution, Draw
from relax_tf.distributions.noise import fold_in, make_seed
from relax_tf.estimators.arguments import (
    checked_context,
    checked_draw,
    checked_gradient,
    checked_objective,
)
from relax_tf.estimators.estimate import (
    Cost,
    Estimate,
    attach_gradient,
    check_problem,
    evaluate_cost,
    package,
    second_moment,
)
from relax_tf.estimators.families import check_family
from relax_tf.estimators.learning import gradients_of_phi, if_due
from relax_tf.estimators.terms import Term
from relax_tf.keras_internals import all_layers


class Estimator(keras.layers.Layer):
    """Base of the estimators. A Keras layer for its variables, configuration and saving only.

    Attributes:
        given_network: the network of `network_terms`, if somebody gave it in place of the default.
        defined_for: the kinds of distributions that the estimator is defined for, of
            `("discrete", "continuous")`.
        families: the classes of distributions that its proof is about, subclasses included; `()`
            of one that holds for any.
        asks_for: the methods that it asks of a distribution beyond those of `Distribution`.
        unbiased: whether the expectation of `Estimate.gradient` is the gradient.
        hard: whether the sample that the cost receives in training is a hard one.
        needs_cost: whether the estimator must evaluate the cost itself. Those that need not
            (`concrete`, `straight_through`, `reinmax`, `reparameterization`) work by ordinary
            backpropagation through the sample that they emit, so a layer that uses them trains
            in any Keras model; they are subclasses of `PathwiseEstimator`.
        learns_from_gradient: whether phi minimises the second moment of the gradient, besides
            what loss the estimator may have of its own.
        replay: what stochastic layers downstream emit while this estimator evaluates the cost
            at another sample than the drawn one: `"hard"`, `"relaxed"`, `"mean"`, or `"sloped"`,
            hard samples, of which discrete ones have the derivative 0 in what they are drawn from.
        num_samples: how many samples an estimate is made of. Where it is not 1, in subclasses of
            `MultiSampleEstimator`, samples, draws and the values of the cost have a leading axis.
        joint: whether the samples of all layers of a model form joint particles, as a bound on
            several samples needs.
        relies_on_derivative: whether the estimates would be biased if what TensorFlow takes for the
            derivative of the cost were not its derivative.
        evaluations: how many times an estimate evaluates the cost of each example, at whatever
            samples. Only where it is above 1 does the certificate ask for a cost that repeats.
        temperature: at which this estimator's layer is relaxed.
        sees_whole_maps: whether the default networks are made as versions made them that knew none
            for feature maps (of a file that one of them saved).
    """

    defined_for: tuple[str, ...] = ("discrete", "continuous")
    families: tuple[type[Distribution], ...] = ()
    asks_for: tuple[str, ...] = ()
    unbiased = True
    hard = True
    needs_cost = True
    learns_from_gradient = True
    replay = "hard"
    num_samples = 1
    joint = False
    relies_on_derivative = False
    sees_whole_maps = False
    given_network: keras.layers.Layer | None = None

    @property
    def evaluations(self) -> int:
        return 1

    def __init__(self, name: str | None = None, dtype: Any = None, **kwargs):
        if dtype is None:
            dtype = "float64" if keras.config.floatx() == "float64" else "float32"
        super().__init__(name=name, dtype=dtype, **kwargs)
        if not {self.compute_dtype, self.variable_dtype} <= {"float32", "float64"}:
            raise ValueError(
                "`dtype` of an estimator must be 'float32' or 'float64': estimates are never "
                f"computed in half precision. Received: {dtype!r}"
            )

    @property
    def id(self) -> str:
        """What `relax_tf.estimators.get` calls it; of a class without an id the class's name."""
        return vars(type(self)).get("_id", type(self).__name__)

    @property
    def temperature(self) -> float | tf.Tensor:
        return 0.5

    def build(
        self, theta_shape: tuple[int | None, ...], context_shape: tuple[int | None, ...] | None
    ) -> None:
        """Creates `phi` for a theta of shape `[batch, *event]` and its context.

        Subclasses create their variables first and end with `super().build(...)`.
        """
        mark_control_variates(self.variables)

    def ensure_built(
        self, theta_shape: tf.TensorShape, context_shape: tf.TensorShape | None
    ) -> None:
        """`build`, if that is still to be done; a subclass may have left out `super().build`."""
        if not self.built:
            self.build(tuple(theta_shape), None if context_shape is None else tuple(context_shape))
            if not self.trainable:  # nor are the networks that `build` made
                for layer in all_layers(self):
                    layer.trainable = False
        mark_control_variates(self.variables)

    # What a subclass defines.

    def emit(self, dist: Distribution, draw: Draw) -> tf.Tensor:
        """The sample that the cost receives in training: the hard one, with no gradient."""
        del dist
        return tf.stop_gradient(draw.b)

    def estimate_gradient(
        self,
        dist: Distribution,
        draw: Draw,
        f_b: tf.Tensor,
        cost: Cost,
        context: tf.Tensor | None,
        seed: tf.Tensor,
    ) -> tuple[Any, tf.Tensor | None]:
        """The gradient per example, and a scalar loss of the estimator's own, or None.

        `dist`, `draw` and `f_b` arrive without a path to the model, and the caller sees to it
        that none of what `cost` is differentiated for here reaches the model either.
        """
        raise NotImplementedError(f"estimator {self.id!r} does not define `estimate_gradient`.")

    def network_terms(self, dist: Distribution, context: tf.Tensor | None) -> list[Term]:
        """What the control variate has of a network that is differentiated in `z`."""
        del dist, context
        return []

    def combine(self, f_b: tf.Tensor) -> tf.Tensor:
        """The objective of each example, `[batch]`, from the values of the cost.

        Of several samples their mean, unless a subclass says otherwise.
        """
        return f_b

    def observe(self, f_b: tf.Tensor, context: tf.Tensor | None) -> None:
        """Takes note of a batch once all estimates on it are made, for the sake of later ones."""
        del f_b, context  # a docstring alone is a body that AutoGraph cannot read

    # What a caller uses.

    def check_defined_for(self, family: type[Distribution]) -> None:
        """Raises a ValueError unless the estimator is defined for this class of distributions."""
        check_family(self, family)

    def draw(self, dist: Distribution, seed: Any = None) -> Draw:
        """What one estimate needs of draws: a draw of `dist`, or `num_samples` of them, stacked.

        Args:
            dist: the distribution.
            seed: None, an integer, a `keras.random.SeedGenerator` or a stateless seed.
        """
        return dist.draw(seed)

    def estimate(
        self,
        dist: Distribution,
        cost: Cost,
        draw: Draw | None = None,
        context: tf.Tensor | None = None,
        seed: Any = None,
    ) -> Estimate:
        """Estimates `d E[cost(b)] / d theta` for `b ~ dist`.

        Args:
            dist: a distribution of `relax_tf.distributions`, theta of shape `[batch, *event]`.
            cost: a function from a sample `[..., batch, *event]` to values `[..., batch]`. What
                else it must be (differentiable, defined at relaxed samples) depends on the
                estimator.
            draw: a pair `(b, z)` drawn earlier by `dist.draw()`, for an estimator with several
                samples by `dist.draw(sample_shape=(num_samples,))`; drawn now if None. `z`
                decides: `b` is recomputed from it.
            context: what the control variate may see besides `z`, shape `[batch, ...]`: the
                layer's input, samples upstream, a state. Nothing that depends on the sample.
            seed: None, an integer, a `keras.random.SeedGenerator` or a stateless seed.

        Returns:
            An `Estimate`; the cost is evaluated once at the sample, first.

        Raises:
            TypeError: if `dist` is not a distribution, `cost` is not callable, its values or the
                context are not real numbers.
            ValueError: if the estimator is not defined for this kind of distribution, if `draw`,
                the context or the cost's values have the wrong shape, or if the cost lacks a
                gradient that this estimator needs.

        Example:

        >>> theta = tf.Variable(tf.zeros([4, 3]))
        >>> estimator = relax_tf.estimators.get("relax")
        >>> with tf.GradientTape() as tape:
        ...     dist = relax_tf.distributions.Bernoulli(theta)
        ...     estimate = estimator.estimate(dist, lambda b: tf.reduce_sum(b, -1), seed=1)
        >>> gradient = tape.gradient(estimate.surrogate, theta)
        >>> bool(tf.reduce_all(gradient == estimate.gradient / 4))
        True
        """
        check_problem(dist, cost)
        self.check_defined_for(type(dist))
        context = None if context is None else checked_context(dist, context)
        seed = make_seed(seed)
        draw = self.draw(dist, seed) if draw is None else self._checked_draw(dist, draw, seed)
        return self._estimate(dist, Draw(*map(tf.stop_gradient, draw)), cost, context, seed)

    def _checked_draw(self, dist: Distribution, draw: Any, seed: tf.Tensor) -> Draw:
        del seed
        return checked_draw(dist, draw, dist.shape)

    def _estimate(self, dist, draw, cost, context, seed) -> Estimate:
        sample = self.emit(dist, draw)
        f_b = evaluate_cost(cost, sample, dist)
        estimate = self.estimate_at(dist, draw, sample, f_b, cost, context, seed)
        self.observe(f_b, context)
        return estimate

    def estimate_at(
        self,
        dist: Distribution,
        draw: Draw,
        sample: tf.Tensor,
        f_b: tf.Tensor,
        cost: Cost,
        context: tf.Tensor | None,
        seed: tf.Tensor,
        objective: Callable[[Any], tf.Tensor] = second_moment,
    ) -> Estimate:
        """`estimate` for a sample whose cost `f_b` is known already.

        `objective` turns the gradient per example into the scalar that phi minimises, unless the
        estimator has a loss of its own.
        """
        self.ensure_built(dist.shape, None if context is None else context.shape)
        gradient, loss = self._learn(
            dist.detached(),
            Draw(*map(tf.stop_gradient, draw)),
            tf.stop_gradient(f_b),
            cost,
            None if context is None else tf.stop_gradient(context),
            fold_in(seed, 1),
            objective=objective,
        )
        objective_of_each = checked_objective(dist, self.combine(f_b), self.id)
        return package(dist, sample, objective_of_each, gradient, loss)

    def _learn(self, dist, *args, objective) -> tuple[Any, tf.Tensor]:
        """The gradient, cut off, and the loss of phi, cut off from everything but phi (eq. 16)."""
        phi = [variable.value for variable in self.trainable_variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(phi)
            gradient, loss = checked_gradient(dist, self.estimate_gradient(dist, *args), self.id)
            gradient = tf.nest.map_structure(dist.zero_where_fixed, gradient)
            if self.learns_from_gradient:
                terms = [objective(gradient), *([] if loss is None else [loss])]
                loss = tf.add_n(terms)
            elif objective is not second_moment:
                raise ValueError(
                    f"estimator {self.id!r} trains on a loss of its own "
                    f"and can have no other objective. Received: objective={objective!r}"
                )
        gradient = tf.nest.map_structure(tf.stop_gradient, gradient)
        if not phi:
            return gradient, tf.stop_gradient(loss)
        values = [tf.convert_to_tensor(value) for value in phi]
        phi_gradients = if_due(
            lambda: gradients_of_phi(tape, loss, phi, self.trainable_variables, self.id), values
        )
        return gradient, attach_gradient(loss, values, phi_gradients)
