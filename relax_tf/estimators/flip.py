"""Flip: ReinMax's estimate, corrected at one random coordinate.

ReinMax knows every coordinate's gradient but for the error of the trapezoid rule. The exact error
of one coordinate takes one more evaluation of the cost, at the sample with that one flipped; drawn
at random and weighted, it makes all of them unbiased.
"""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from relax_tf.control_variates import (
    MLP,
    build_network,
    by_backpropagation,
    evaluate_outputs,
)
from relax_tf.distributions import Bernoulli
from relax_tf.distributions.base import Distribution, flat_event, sum_event
from relax_tf.estimators.arguments import check_event
from relax_tf.estimators.base import Estimator
from relax_tf.estimators.estimate import Cost, batch_mean, evaluate_cost
from relax_tf.estimators.flip_gradient import (
    at_step,
    changed,
    curved_correction,
    curved_flip_gradient,
    flip_gradient,
    seen_curvature,
)
from relax_tf.estimators.moving_moments import MovingMoments
from relax_tf.estimators.networks import with_networks
from relax_tf.validation import decay_rate


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
    temperature, and the cost never sees a value outside of the support. For discrete variables;
    see `flip_gradient`. The variable is drawn from nine tenths of a distribution proportional to
    its variance, `p (1 - p)` or `1 - sum_c p_c^2`, times the learned size of its corrections, and
    one tenth of the uniform one.

    A network foretells the curvature in each coordinate from the probabilities of all of them,
    which takes away most of what noise ReinMax's estimate has (`curved_flip_gradient`). It learns
    from the curvature that each flip shows, by the likelihood of a normal distribution whose
    variance, one for each variable, is learned too; so is the size of the noise that it is to take
    away. From the two follows how far an estimate relies on it: not at all at first.

    In a model the second evaluation is a replay in which layers downstream keep their noise and
    emit hard samples. Slopes lead through continuous ones of these and not through discrete ones,
    whose jumps they would not foretell: below discrete layers `midpoint` has less variance.

    Args:
        curvature: True; a Keras layer or model in the network's place, from `[batch, units]`,
            `2 p - 1`, to `[batch, units]`, with the classes of all variables as units; or False
            for ReinMax's form alone, without anything to learn. By default
            `relax_tf.control_variates.MLP([100], outputs=units)`. Events of unknown size have none.
        decay: in [0, 1), of the standard deviation of past costs, which is the network's unit:
            the weight of a batch relative to the next one.

    Raises:
        TypeError: if `curvature` is not a Keras layer or a bool, or `decay` not a number.
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
    asks_for = ("trapezoid_vjp", "neighbour", "curved_vjp", "curved_noise")
    replay = "sloped"
    learns_from_gradient = False

    def __init__(self, curvature: keras.layers.Layer | bool = True, decay: float = 0.99, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(curvature, (keras.layers.Layer, bool)):
            raise TypeError(
                "`curvature` must be a Keras layer or model, True or False. Received: "
                f"{curvature!r} (of type {type(curvature).__name__})"
            )
        self.curvature = curvature if isinstance(curvature, keras.layers.Layer) else None
        self._curvature_argument = None if self.curvature is not None else curvature
        self.decay = decay_rate(decay, "decay")
        self.past = MovingMoments(self.decay, dtype=self.dtype_policy, name="past")
        self._binary = True
        self._learns = False

    @property
    def evaluations(self) -> int:
        return 2

    def check_defined_for(self, family):
        super().check_defined_for(family)
        binary = issubclass(family, Bernoulli)
        if not self.built:
            self._binary = binary
        elif self._learns and binary != self._binary:
            raise ValueError(
                f"estimator {self.id!r} was built for {'binary' if self._binary else 'one-hot'} "
                f"variables: make a new one. Received: {family.__name__}"
            )

    def build(self, theta_shape, context_shape=None):
        self._event = theta_shape[1:]
        units = tf.TensorShape(self._event).num_elements()
        self._learns = self._curvature_argument is not False and bool(units)
        if self._learns:
            if self.curvature is None:
                self.curvature = MLP([100], outputs=units, dtype=self.dtype_policy)
            build_network(self.curvature, theta=theta_shape)
            variables = units if self._binary else units // theta_shape[-1]
            # A tenth of the logarithms of variances: they have far to go at a network's rate.
            self.log_unforeseen, self.log_noise, self.log_error = (
                self.add_weight(name=name, shape=(variables,), initializer="zeros")
                for name in ("log_unforeseen", "log_noise", "log_error")
            )
        super().build(theta_shape, context_shape)

    def get_build_config(self):
        config = super().get_build_config()
        return config and {**config, "binary": self._binary}

    def build_from_config(self, config):
        self._binary = config.get("binary", True)
        super().build_from_config({k: v for k, v in config.items() if k != "binary"})

    def _estimate(self, dist, draw, cost, context, seed):
        sample = self.emit(dist, draw)
        f_b, df_db = by_backpropagation(lambda b: evaluate_cost(cost, b, dist), sample)
        evaluated = EvaluatedCost(cost, df_db)
        estimate = self.estimate_at(dist, draw, sample, f_b, evaluated, context, seed)
        self.observe(f_b, context)
        return estimate

    def estimate_gradient(self, dist, draw, f_b, cost, context, seed):
        if self._learns:
            check_event(dist, self._event, self.id)
        if isinstance(cost, EvaluatedCost):
            df_db = cost.df_db
        else:
            _, df_db = by_backpropagation(cost, draw.b)
        size = (self.size(dist),) if self._learns else ()
        neighbour, weight = dist.neighbour(draw.b, seed, *size)
        f_neighbour, df_dneighbour = by_backpropagation(
            lambda b: evaluate_cost(cost, b, dist), neighbour
        )
        if df_db is None or df_dneighbour is None:
            raise ValueError(
                f"estimator {self.id!r} differentiates the cost at hard "
                "samples, but the cost has no gradient with respect to its sample. For a black-box "
                "cost use estimator='relaxed_disarm' (binary variables) or 'relax', which learn "
                "their slopes."
            )
        slopes = finite_slopes(df_db), finite_slopes(df_dneighbour)
        evaluations = (dist, draw.b, neighbour, weight, f_b, f_neighbour, *slopes)
        if not self._learns:
            gradient = flip_gradient(*evaluations)
            return gradient, batch_mean(tf.zeros_like(f_b))
        curvature, loss = self._foretell(dist, draw.b, neighbour, f_b, f_neighbour, *slopes)
        return curved_flip_gradient(*evaluations, curvature, self.share(dist)), loss

    def unit(self, dtype: tf.DType) -> tf.Tensor:
        """What the network's output is a multiple of: a scalar."""
        deviation = self.past.standard_deviation()
        variables = self.log_noise.shape[0]
        return tf.cast(tf.where(deviation > 0, deviation, 1) / variables, dtype)

    def size(self, dist: Distribution) -> tf.Tensor:
        """The expected size of each variable's correction over its probability, `[1, *variables]`.

        Corrections have the least variance where `q_j` is proportional to `v_j` times this.
        """
        return tf.stop_gradient(tf.exp(0.5 * self._log_variance(self.log_error, dist)))

    def share(self, dist: Distribution) -> tf.Tensor:
        """How far the estimate of each variable relies on its foretold curvature.

        `A / (A + B)`, of the two parts of `curved_flip_gradient` that have different noise. For a
        Bernoulli variable, with `A = E[{(1 - p) f'(1) - p f'(0)}^2] / 4`, ReinMax's term varies by
        `v A`; with the foretold curvature, off by E on average in squares, first term and
        correction vary by `v B`, `B = E (v^2 + (p - 1/2)^2 v / q)`. For one-hot variables A is a
        mean over pairs of classes and B, `E curved_noise`, what it is if all their curvatures err
        independently.
        """
        log_ratio = self._log_variance(self.log_unforeseen, dist)
        log_ratio -= self._log_variance(self.log_noise, dist)
        ratio = tf.stop_gradient(tf.exp(log_ratio))
        return 1 / (1 + 4 * ratio * dist.curved_noise(self.size(dist)))

    def _foretell(
        self, dist, b, neighbour, f_b, f_neighbour, df_db, df_dneighbour
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The curvature in each coordinate, and the loss of all that is learned."""
        p = dist.probabilities()
        outputs = evaluate_outputs(self.curvature, flat_event(2 * p - 1))
        outputs = tf.reshape(outputs, tf.shape(p))
        unit = self.unit(p.dtype)
        curvature = tf.stop_gradient(unit * outputs)
        step = dist.score(b) - dist.score(neighbour)
        drawn = changed(dist, step)
        seen = seen_curvature(b, neighbour, df_db, df_dneighbour)
        unforeseen = seen / unit - at_step(step, outputs)
        # twice the change of ReinMax's estimate
        noise = dist.trapezoid_vjp(b, df_db) - dist.trapezoid_vjp(neighbour, df_dneighbour)
        noise = 2 * drawn * noise / unit
        evaluations = (dist, b, neighbour, f_b, f_neighbour, df_db, df_dneighbour)
        error = curved_correction(*evaluations, curvature, self.share(dist)) / unit
        learned = (
            (tf.square(unforeseen), self.log_unforeseen),
            (sum_event(tf.square(noise)), self.log_noise),
            (sum_event(tf.square(error)), self.log_error),
        )
        losses = [
            normal_loss(square, sum_event(drawn * self._log_variance(variable, dist)))
            for square, variable in learned
        ]
        return curvature, tf.add_n(losses)

    def _log_variance(self, variable, dist) -> tf.Tensor:
        """One for each variable, `[1, *variables]`, with the axes of theta."""
        shape = [1, *dist.shape[1:]] if self._binary else [1, *dist.shape[1:-1], 1]
        return tf.reshape(10 * tf.cast(variable, dist.dtype), shape)

    def observe(self, f_b, context):
        if self._learns:
            self.past.update(f_b)

    def get_config(self) -> dict[str, Any]:
        curvature = self._curvature_argument
        if curvature is None:
            curvature = keras.saving.serialize_keras_object(self.curvature)
        return {**super().get_config(), "curvature": curvature, "decay": self.decay}

    @classmethod
    def from_config(cls, config):
        return cls(**with_networks(config, "curvature"))


def normal_loss(square: tf.Tensor, log_variance: tf.Tensor) -> tf.Tensor:
    """The batch mean of minus the log-density of normal errors, but for a constant."""
    return batch_mean(0.5 * (square * tf.exp(-log_variance) + log_variance))
