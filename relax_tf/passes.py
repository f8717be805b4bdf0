"""One pass through a model: what each stochastic layer emits, and the record it leaves.

While a pass is active, every call of a stochastic layer hands its distribution to the pass and
emits what the pass answers. Three kinds:

- `TrainingPass` draws, and records theta, noise, z, sample and context of every call;
- `Replay` repeats a training pass with the sample of one call replaced;
- `EvaluationPass` draws hard samples (or means) and records them for the cost.
"""

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from relax_tf.distributions.base import Distribution, Draw
from relax_tf.distributions.noise import fold_in
from relax_tf.folding import tile

_active = threading.local()


@dataclasses.dataclass(frozen=True)
class Latent:
    """One call of a stochastic layer in one pass; what `compute_cost` finds in `latents[name]`.

    Attributes:
        dist: the layer's distribution in this pass, with `log_prob` and the like.
        z: the continuous variable behind the sample, `[batch, *event]` (None for a mean in
            evaluation; in replays it may be that of the hard pass).
        sample: what the layer emitted, before the cast to its compute dtype.
        kl: the layer's Kullback-Leibler term, `[batch]`, in nats; None without a prior.
        layer, eps, context: the layer, the noise of z, and what its control variate sees (the
            layer's input, unless it was called with a context).
    """

    dist: Distribution
    z: tf.Tensor | None
    sample: tf.Tensor
    kl: tf.Tensor | None
    layer: Any
    eps: tf.Tensor | None
    context: tf.Tensor

    @property
    def theta(self) -> Any:
        return self.dist.theta


class Pass:
    """A context in which stochastic layers emit what this object answers."""

    def __init__(self):
        self.latents: dict[str, Latent] = {}

    def __enter__(self):
        _stack().append(self)
        return self

    def __exit__(self, *exception):
        _stack().pop()

    def emit(self, layer: Any, dist: Distribution, context: tf.Tensor) -> tf.Tensor:
        """Called by a stochastic layer: records the call, answers the sample to emit."""
        eps, z, sample = self._choose(len(self.latents), layer, dist)
        self.latents[self._key(layer)] = Latent(
            dist=dist,
            z=z,
            sample=sample,
            kl=layer.kl_divergence(dist, sample),
            layer=layer,
            eps=eps,
            context=context,
        )
        return sample

    def _choose(
        self, index: int, layer: Any, dist: Distribution
    ) -> tuple[tf.Tensor | None, tf.Tensor | None, tf.Tensor]:
        """Noise, z and sample of call number `index`."""
        raise NotImplementedError

    def _key(self, layer: Any) -> str:
        """The layer's name; from its second call on `name:1`, `name:2`, ..."""
        calls = [latent for latent in self.latents.values() if latent.layer.name == layer.name]
        if any(latent.layer is not layer for latent in calls):
            raise ValueError(
                f"two stochastic layers of one model are both named {layer.name!r}. "
                "Give each its own `name`."
            )
        return f"{layer.name}:{len(calls)}" if calls else layer.name

    def _draw(self, index: int, layer: Any, dist: Distribution) -> tuple[tf.Tensor, Draw]:
        # The call's number keeps layers apart that were given the same seed.
        eps = dist.noise(fold_in(layer.next_seed(), index))
        return eps, dist.from_noise(eps)


class TrainingPass(Pass):
    """Draws as the estimators want it.

    Args:
        tape: watches z where an estimator backpropagates through it, if given.
    """

    def __init__(self, tape: tf.GradientTape | None = None):
        super().__init__()
        self._tape = tape

    def _choose(self, index, layer, dist):
        eps, draw = self._draw(index, layer, dist)
        if self._tape is not None and not layer.estimator.needs_cost:
            self._tape.watch(draw.z)
        return eps, draw.z, layer.estimator.emit(dist, draw)


class Replay(Pass):
    """A training pass once more, with the sample of call number `index` replaced.

    Calls that cannot depend on it keep their samples. Calls downstream meet another theta: they
    keep their noise, `z = theta + eps`, since keeping the value of z or b would hide their
    dependence on the replaced sample. They emit relaxed samples, means, or (`"hard"`) what their
    estimators emit, or (`"sloped"`) the same with a backward path to theta.

    Args:
        original: the pass to repeat.
        index, sample: the call whose sample is replaced, and by what: `[copies * batch, *event]`.
        emits: what calls downstream emit, `"hard"`, `"sloped"`, `"relaxed"` or `"mean"`.
        copies: how many times the batch of the original is tiled, for several samples at once.
        is_downstream: tells of a later call's layer whether it may depend on this call's sample.
    """

    def __init__(
        self,
        original: Pass,
        index: int,
        sample: tf.Tensor,
        emits: str,
        copies: int,
        is_downstream: Callable[[Any], bool],
    ):
        super().__init__()
        self._originals = list(original.latents.values())
        self._index = index
        self._sample = sample
        self._emits = emits
        self._copies = copies
        self._is_downstream = is_downstream

    def _choose(self, index, layer, dist):
        original = self._original(index, layer)
        eps, z, sample = tile((original.eps, original.z, original.sample), self._copies)
        if index == self._index:
            return eps, z, self._sample
        if index < self._index or not self._is_downstream(layer):
            return eps, z, tf.stop_gradient(sample)
        draw = dist.from_noise(eps)
        return eps, draw.z, self._emission(layer, dist, draw)

    def _emission(self, layer: Any, dist: Distribution, draw: Draw) -> tf.Tensor:
        if self._emits == "relaxed":
            return dist.relax(draw.z, tf.cast(layer.estimator.temperature, dist.dtype))
        if self._emits == "mean":
            return dist.mean()
        if self._emits == "sloped" and layer.estimator.needs_cost:
            return dist.sloped(draw.z)
        return layer.estimator.emit(dist, draw)

    def _original(self, index: int, layer: Any) -> Latent:
        if index >= len(self._originals) or self._originals[index].layer is not layer:
            raise ValueError(
                "a RelaxModel must call its stochastic layers in the same order in every pass; "
                f"in a replay, call number {index} unexpectedly came from {layer.name!r}."
            )
        return self._originals[index]


class EvaluationPass(Pass):
    """Hard samples, or means where a layer was built with `inference="mean"`."""

    def _choose(self, index, layer, dist):
        if layer.inference == "mean":
            return None, None, dist.mean()
        eps, draw = self._draw(index, layer, dist)
        return eps, draw.z, draw.b


def active_pass() -> Pass | None:
    """The innermost active pass of this thread."""
    return _stack()[-1] if _stack() else None


def _stack() -> list[Pass]:
    if not hasattr(_active, "stack"):
        _active.stack = []
    return _active.stack
