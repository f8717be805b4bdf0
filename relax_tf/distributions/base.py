"""What an estimator asks of a distribution."""

import copy
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from relax_tf.distributions import noise


class Draw(NamedTuple):
    """One joint draw: the hard sample `b = H(z)` and the continuous variable `z` behind it.

    `b` is a value of the distribution's support, exactly what a cost receives.
    """

    b: tf.Tensor
    z: tf.Tensor


def at_least_float32(value: Any, name: str) -> tf.Tensor:
    """`value` as a float32 or float64 tensor: estimates are never computed in half precision."""
    try:
        tensor = tf.convert_to_tensor(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`{name}` must be convertible to a floating-point tensor. Received: {value!r}"
        ) from error
    if not tensor.dtype.is_floating:
        raise TypeError(f"`{name}` must have a floating-point dtype. Received: {tensor.dtype.name}")
    return tensor if tensor.dtype == tf.float64 else tf.cast(tensor, tf.float32)


# A logit beyond it says "impossible" or "sure": infinity, or -1e9, or the lowest number of a dtype,
# be it float16's, in its place. Its probability is 0 to the last digit of float64 anyway.
INFINITE_LOGIT = 5e4

# How far below the others the finite logit lies that stands in for an infinite one: so far that its
# probability rounds to 0, and that no noise bridges it; near enough for the numbers of a network.
_STAND_IN = {tf.float32: 200.0, tf.float64: 1000.0}


def stand_in_logit(dtype: tf.DType) -> float:
    """The distance of the finite logit that stands in for an infinite one."""
    return _STAND_IN[dtype]


def infinite_where(condition: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Infinity or 0: a logarithm, since `tf.debugging.enable_check_numerics` sees constants too."""
    return -tf.math.log(tf.cast(~condition, dtype))


def over_event(per_example: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Appends axes to `[batch]` so that it broadcasts over the event axes of `like`."""
    missing = like.shape.rank - per_example.shape.rank
    return tf.reshape(per_example, tf.concat([tf.shape(per_example), [1] * missing], 0))


def sum_event(value: tf.Tensor, batch_rank: int = 1) -> tf.Tensor:
    """Sums everything but the first `batch_rank` axes."""
    return tf.reduce_sum(value, axis=list(range(batch_rank, value.shape.rank)))


def flat_event(value: tf.Tensor, axes: int = 0) -> tf.Tensor:
    """`[batch, *event]` as `[batch, n]`, or as `[batch, n, ...]` with the last `axes` axes kept."""
    shape, last = tf.shape(value), value.shape.rank - axes
    size = value.shape[1:last].num_elements()
    size = tf.reduce_prod(shape[1:last]) if size is None else size
    return tf.reshape(value, tf.concat([shape[:1], [size], shape[last:]], 0))


class Distribution:
    """Base of the distributions that estimators differentiate with respect to `theta`.

    A subclass is a small immutable object around `theta`: a tensor of shape `[batch, *event]`, or
    a structure of such tensors, each of the shape of a sample. It tells how to draw, and the
    derivatives that equations 7 and 10 of the paper are made of. Every formula is per coordinate
    or per example and free of state.

    Attributes:
        discrete: whether `b = H(z)` is a hard sample, or `z` itself. Discrete distributions also
            have `conditional_draw` and `conditional_vjp`, which equation 10 needs,
            `trapezoid_vjp`, which `reinmax` needs, and `neighbour`, `curved_vjp` and
            `curved_noise`, which `flip` needs.

    A distribution of your own serves `reinforce` and `rloo` with `noise`, `from_noise`, `harden`,
    `score`, `with_theta` and, for `exact_gradient`, `log_prob` and `enumerate`; a layer asks for
    `mean` and `mode` besides, and with a prior for `kl_divergence`. `concrete`, `rebar`, `relax`
    and what is made of them relax it: `relax`, `reparameterization_vjp`, and what is said above.
    `disarm`, `arms` and `midpoint` are about the library's own families. `check_unbiased` and a
    model's certificate hold the `score` against `log_prob`, if that has a derivative.
    """

    discrete: bool
    theta: Any

    def __init__(self, theta: Any):
        for leaf in tf.nest.flatten(theta):
            if leaf.shape.rank is None or leaf.shape.rank < 1:
                raise ValueError(
                    "distribution parameters need shape [batch, *event]: add a batch axis, such "
                    f"as theta[tf.newaxis]. Received shape: {leaf.shape}"
                )
        self.theta = theta

    @property
    def first_theta(self) -> tf.Tensor:
        """`theta`, or of a structure its first tensor: of the shape and dtype of a sample."""
        return tf.nest.flatten(self.theta)[0]

    @property
    def dtype(self) -> tf.DType:
        return self.first_theta.dtype

    @property
    def shape(self) -> tf.TensorShape:
        """Static shape of one sample, `[batch, *event]`."""
        return self.first_theta.shape

    def with_theta(self, theta: Any) -> "Distribution":
        """The same family with other parameters."""
        raise NotImplementedError

    def map_theta(self, function: Callable[[tf.Tensor], tf.Tensor]) -> "Distribution":
        return self.with_theta(tf.nest.map_structure(function, self.theta))

    def detached(self) -> "Distribution":
        """The same distribution, through which no gradient reaches the model."""
        detached = copy.copy(self)
        detached.theta = tf.nest.map_structure(tf.stop_gradient, self.theta)
        return detached

    def zero_where_fixed(self, values: tf.Tensor) -> tf.Tensor:
        """`values`, `[..., batch, *event]`, and 0 where an infinite logit leaves nothing to chance.

        There the gradient is 0, and `z` says nothing.
        """
        return values

    def per_variable(self, values: tf.Tensor) -> tf.Tensor:
        """Sums `values`, `[..., batch, *event]`, over the coordinates of each variable.

        The axes remain: of one-hot variables the last one is 1, all others have one coordinate.
        """
        return values

    def noise(self, seed: Any = None, sample_shape: tuple[int, ...] = ()) -> tf.Tensor:
        """Draws the parameter-free noise of `z`, shape `[*sample_shape, batch, *event]`."""
        raise NotImplementedError

    def from_noise(self, eps: tf.Tensor) -> Draw:
        """The draw that this noise stands for under this `theta`."""
        raise NotImplementedError

    def draw(self, seed: Any = None, sample_shape: tuple[int, ...] = ()) -> Draw:
        """Draws `(b, z)` jointly, each of shape `[*sample_shape, batch, *event]`.

        Args:
            seed: see `relax_tf.distributions.noise.make_seed`: None, an integer, a
                `keras.random.SeedGenerator` or a stateless seed.
            sample_shape: leading axes of independent draws.
        """
        return self.from_noise(self.noise(seed, sample_shape))

    def mean(self) -> tf.Tensor:
        """`E[b]`, shape `[batch, *event]`."""
        raise NotImplementedError

    def mode(self) -> tf.Tensor:
        """The most probable sample, shape `[batch, *event]`."""
        raise NotImplementedError

    def sloped(self, z: tf.Tensor) -> tf.Tensor:
        """`H(z)`, with a backward path to `theta` that leads through `z`.

        Of a continuous distribution `z` itself; of a discrete one the path is the trapezoid rule,
        `trapezoid_vjp`.
        """
        if not self.discrete:
            return z
        frozen = self.detached()

        @tf.custom_gradient
        def sample(z):
            b = frozen.harden(z)
            return b, lambda w: frozen.trapezoid_vjp(b, w)

        return sample(z)

    def enumerate(self) -> tf.Tensor:
        """All samples of one event, `[samples, *event]`, where there are finitely many."""
        raise ValueError(f"the samples of {type(self).__name__} cannot be enumerated.")

    def check_same_family(self, other: Any) -> None:
        """Raises a TypeError unless one of the two classes is that of the other, or above it."""
        if not (isinstance(other, type(self)) or isinstance(self, type(other))):
            raise TypeError(
                f"`other` must be a {type(self).__name__}. "
                f"Received: {other!r} (of type {type(other).__name__})"
            )

    def _all_states(self, values: np.ndarray, variables: tf.TensorShape) -> tf.Tensor:
        """Every assignment of `values`, `[count, ...]`, to variables in an array of this shape."""
        number = variables.num_elements()
        if number is None or not 0 < len(values) ** number <= 2**16:
            raise ValueError(
                "enumeration needs an event of known shape with at most 2 ** 16 samples. "
                f"Received event shape: {tuple(self.shape[1:])}"
            )
        states = np.array(list(itertools.product(values, repeat=number)))
        return tf.constant(states.reshape([-1, *self.shape[1:]]), self.dtype)

    def _noise_shape(self, sample_shape: tuple[int, ...]) -> tf.TensorShape | tf.Tensor:
        shape = tf.TensorShape(sample_shape).concatenate(self.shape)
        if shape.is_fully_defined():
            return shape
        return tf.concat([tf.constant(sample_shape, tf.int32), tf.shape(self.first_theta)], 0)

    def _seed(self, seed: Any) -> tf.Tensor:
        return noise.make_seed(seed)
