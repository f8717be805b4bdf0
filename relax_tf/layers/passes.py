"""One pass through a model: what each stochastic layer emits, and the record it leaves.

While a pass is active, every call of a stochastic layer hands its distribution to the pass and
emits what the pass answers. `EvaluationPass` draws hard samples (or means); the passes of a
training step are in `relax_tf.step`.
"""

import dataclasses
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from relax_tf.distributions.base import Distribution, Draw
from relax_tf.distributions.noise import fold_in

_active = threading.local()


@dataclasses.dataclass(frozen=True)
class Latent:
    """One call of a stochastic layer in one pass; what `compute_cost` finds in `latents[name]`.

    There is no z: a cost that reads it is no function of the sample.

    Attributes:
        dist: the layer's distribution in this pass, with `log_prob` and the like.
        theta: its parameters, `[batch, ..., units]` logits, or the pair `(loc, scale)`.
        sample: what the layer emitted, before the cast to its compute dtype: a hard sample, or in
            a replay for an estimator that asks for it a relaxed one or a mean.
        kl: the layer's Kullback-Leibler term, `[batch]`, in nats; None without a prior.

    Example: a KL of half the weight, and a penalty on active units.

    >>> class Model(relax_tf.RelaxModel):
    ...     def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
    ...         b: relax_tf.Latent = latents["b"]
    ...         error = tf.reduce_sum((y_pred - y) ** 2, -1)
    ...         return error + 0.5 * b.kl + 0.1 * tf.reduce_sum(b.sample, -1)
    >>> inputs = keras.Input([4])
    >>> b = relax_tf.StochasticBinaryLayer(3, prior="uniform", name="b")(inputs)
    >>> model = Model(inputs, keras.layers.Dense(1)(b))
    >>> model.compile("adam")
    >>> history = model.fit(tf.ones([8, 4]), tf.ones([8, 1]), verbose=0)
    """

    dist: Distribution
    sample: tf.Tensor
    kl: tf.Tensor | None

    @property
    def theta(self) -> Any:
        return self.dist.theta

    def __getattr__(self, name: str):
        if name == "z":
            raise AttributeError(
                "a cost may depend on the sample and on theta, not on z: a cost that reads z is no "
                "function of b, and its gradient estimates would be biased. Use `sample`."
            )
        raise AttributeError(f"a Latent has theta, dist, sample and kl. Received: {name!r}")


class Latents(dict):
    """`latents[name]`: the stochastic layers' calls by the layer's name, `name:1` for a second."""

    def __missing__(self, name):
        raise KeyError(f"there is no latent {name!r}. The latents are: {', '.join(self)}")


class Call(NamedTuple):
    """The record of one call of a stochastic layer.

    `eps` is the noise of `z` (both None for a mean or mode in evaluation; in replays they may be
    those of the hard pass), `context` what the control variate sees.
    """

    name: str
    layer: Any
    dist: Distribution
    eps: tf.Tensor | None
    z: tf.Tensor | None
    sample: tf.Tensor
    kl: tf.Tensor | None
    context: tf.Tensor

    @property
    def theta(self) -> Any:
        return self.dist.theta

    @property
    def draw(self) -> Draw:
        return Draw(self.sample, self.z)


class Pass:
    """A context in which stochastic layers emit what this object answers.

    Attributes:
        calls: the records so far, in order.
        latents: of the same calls, what a cost may see; it grows while the cost makes calls.
        terms: the parts of the cost that have a name, `[batch]` each.
        trains: whether it is part of a training step.
    """

    trains = False

    def __init__(self):
        self.calls: list[Call] = []
        self.latents = Latents()
        self.terms: dict[str, tf.Tensor] = {}

    def __enter__(self):
        _stack().append(self)
        return self

    def __exit__(self, *exception):
        _stack().pop()

    def emit(self, layer: Any, dist: Distribution, context: tf.Tensor) -> tf.Tensor:
        """Called by a stochastic layer: records the call, answers the sample to emit."""
        eps, z, sample = self._choose(len(self.calls), layer, dist)
        kl = layer.kl_divergence(dist, sample)
        name = self._name(layer)
        self.calls.append(Call(name, layer, dist, eps, z, sample, kl, context))
        self.latents[name] = Latent(dist, sample, kl)
        return sample

    def total(self, cost: Any) -> Any:
        """The cost that `compute_cost` returned: itself, or the sum of a dict of terms."""
        if not isinstance(cost, Mapping):
            return cost
        terms = _checked(cost)
        self.terms.update(terms)
        return tf.add_n(list(terms.values()))

    def _choose(
        self, index: int, layer: Any, dist: Distribution
    ) -> tuple[tf.Tensor | None, tf.Tensor | None, tf.Tensor]:
        """Noise, z and sample of call number `index`."""
        raise NotImplementedError

    def _name(self, layer: Any) -> str:
        """The layer's name; from its second call on `name:1`, `name:2`, ..."""
        before = [call for call in self.calls if call.layer.name == layer.name]
        if any(call.layer is not layer for call in before):
            raise ValueError(
                f"two stochastic layers of one model are both named {layer.name!r}. "
                "Give each its own `name`, or leave `name` unset where Keras copies a layer "
                "(keras.layers.Bidirectional). A copy that only predicts, such as a teacher, is "
                "`model.for_inference('mode')`."
            )
        return f"{layer.name}:{len(before)}" if before else layer.name


class EvaluationPass(Pass):
    """Hard samples; means or modes where a layer's `inference` says so.

    Args:
        inference: what all layers emit, in place of what each says.
    """

    def __init__(self, inference: str | None = None):
        super().__init__()
        self._inference = inference

    def _choose(self, index, layer, dist):
        inference = self._inference or layer.inference
        if inference != "sample":
            return None, None, without_chance(dist, inference)
        # The call's number keeps layers apart that were given the same seed.
        eps = dist.noise(fold_in(layer.next_seed(), index))
        draw = dist.from_noise(eps)
        in_a_step = any(outer.trains for outer in _stack())
        return eps, draw.z, without_gradient(layer, dist, draw.b) if in_a_step else draw.b


def without_gradient(layer: Any, dist: Distribution, b: tf.Tensor) -> tf.Tensor:
    """A sample drawn for inference in a training step, where no estimator sees it.

    Raises:
        ValueError: where a gradient asks for the way to theta, which would lack its part.
    """

    @tf.custom_gradient
    def sample(*theta):
        del theta

        def backward(*_):
            raise ValueError(
                f"a sample of layer {layer.name!r} was drawn for inference inside a training step, "
                "where no estimator sees it: the gradient of what computes its theta would be "
                "missing. Cut it off (tf.stop_gradient), or call the model itself."
            )

        return tf.stop_gradient(b), backward

    return sample(*tf.nest.flatten(dist.theta))


def without_chance(dist: Distribution, inference: str) -> tf.Tensor:
    """What a layer emits under `inference="mean"` or `"mode"`."""
    return dist.mean() if inference == "mean" else dist.mode()


def _checked(terms: Mapping[str, Any]) -> dict[str, tf.Tensor]:
    """The terms `[batch]`, or a ValueError that shows which one is another shape.

    All are made floating point, of one dtype. Python's, of unknown rank, are checked when they
    are computed.
    """
    nested = {
        name: type(term).__name__ for name, term in terms.items() if isinstance(term, Mapping)
    }
    if nested:
        raise ValueError(
            "the terms of a cost must be tensors of shape [batch], each under a name of its own. "
            f"Received: {nested}"
        )
    tensors = {name: tf.convert_to_tensor(term) for name, term in terms.items()}
    for name, tensor in tensors.items():
        if tensor.shape.rank is None:
            tensors[name] = tf.ensure_shape(tensor, [None])
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if not tensors or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(
            "`compute_cost` must return the cost of each example, shape [batch], or a dict of such "
            f"terms, at least one. Received a dict of shapes: {shapes}"
        )
    double = any(tensor.dtype == tf.float64 for tensor in tensors.values())
    dtype = tf.float64 if double else tf.float32
    return {name: tf.cast(tensor, dtype) for name, tensor in tensors.items()}


def active_pass() -> Pass | None:
    """The innermost active pass of this thread."""
    return _stack()[-1] if _stack() else None


def _stack() -> list[Pass]:
    if not hasattr(_active, "stack"):
        _active.stack = []
    return _active.stack
