"""A replay is the hard pass again with one emission changed.

The same shapes, the same noise and masks everywhere, the same state, and no trace left in it. What
a replay is stands here and nowhere else.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from relax_tf.distributions import Distribution, Draw
from relax_tf.distributions.base import sum_event
from relax_tf.estimators.estimate import Cost
from relax_tf.layers.passes import Call, Pass
from relax_tf.step.folding import fold, tile, unfold
from relax_tf.step.graph import may_depend
from relax_tf.step.hard_pass import Batch, Outcome, TrainingPass, run_with_cost

_SAME_CALLS = (
    "a RelaxModel must call its stochastic layers in the same order in every pass. Where the calls "
    "depend on the samples, as with a loop until all examples stop, estimators that evaluate the "
    "cost once ('relax', 'nvil', 'reinforce') train with `model.certify = False`."
)


class Replay(Pass):
    """A training pass once more, with the sample of call number `index` replaced.

    Calls that cannot depend on it keep their samples. Calls downstream meet another theta: they
    keep their noise, `z = theta + eps`, since keeping the value of z or b would hide their
    dependence on the replaced sample. They emit relaxed samples, means, or what their estimators
    emit.

    Args:
        originals: the calls to repeat.
        index, sample: the call whose sample is replaced, and by what: `[copies * batch, *event]`.
        emits: what calls downstream emit: `"hard"`, `"relaxed"`, `"mean"`; `"sloped"` for hard
            samples that have a derivative, which of discrete ones is 0; or `"held"` for samples
            held as they were drawn, all that are discrete or estimated from the cost.
        copies: how many times the batch of the original is tiled, for several samples at once.
        is_downstream: tells of a later call whether it may depend on this call's sample.
    """

    trains = True

    def __init__(
        self,
        originals: list[Call],
        index: int,
        sample: tf.Tensor | None,
        emits: str,
        is_downstream: Callable[[Call], bool],
        copies: int = 1,
    ):
        super().__init__()
        self._originals = originals
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
        if index < self._index or not self._is_downstream(original):
            return eps, z, tf.stop_gradient(sample)
        if self._emits == "held" and (dist.discrete or layer.estimator.needs_cost):
            return eps, z, tf.stop_gradient(sample)
        draw = dist.from_noise(eps)
        return eps, draw.z, self._emission(layer, dist, draw)

    def _emission(self, layer: Any, dist: Distribution, draw: Draw) -> tf.Tensor:
        if self._emits == "relaxed":
            return dist.relax(draw.z, tf.cast(layer.estimator.temperature, dist.dtype))
        if self._emits == "mean":
            return dist.mean()
        if self._emits == "sloped" and layer.estimator.needs_cost:
            return flat(draw) if dist.discrete else draw.z
        return layer.estimator.emit(dist, draw)

    def _original(self, index: int, layer: Any) -> Call:
        if index >= len(self._originals) or self._originals[index].layer is not layer:
            raise ValueError(
                f"{_SAME_CALLS} In a replay, call number {index} unexpectedly came from "
                f"{layer.name!r}."
            )
        return self._originals[index]


def flat(draw: Draw) -> tf.Tensor:
    """`b`, whose derivative in `z` is not absent but 0, as it is almost everywhere.

    A cost that the replaced sample reaches through discrete samples alone then has the slope 0
    there, and only a cost without any derivative is told apart. ReinMax's backward path through
    them is no better: a step of the replaced sample moves some of these samples by 1 and the others
    not at all, and slopes that foretell the mean of that are off by all of its noise, several times
    over where a sample feeds both a decoder and a layer (docs/mathematics.md, Stacks).
    """

    @tf.custom_gradient
    def sample(z):
        return draw.b, lambda w: tf.zeros_like(z)

    return sample(draw.z)


class Replays:
    """The replays of one hard pass.

    Args:
        model, batch: what is replayed.
        hard, outcome: the hard pass and what it yielded.
    """

    def __init__(self, model: Any, batch: Batch, hard: TrainingPass, outcome: Outcome):
        self._model = model
        self._batch = batch
        self._calls = list(hard.calls)
        self._state, self._f_b, self._added = outcome.state, outcome.f_b, outcome.added

    def cost(self, index: int, emits: str | None = None) -> Cost:
        """The cost as a function of the sample of call number `index`, in the dtype of its theta.

        The function takes `[batch, *event]` to `[batch]`, and `[K, batch, *event]` to
        `[K, batch]`: K replays, or one of a batch K times as long where that is known to be the
        same.

        Args:
            index: of the call in the hard pass.
            emits: what calls downstream emit, by default what the call's estimator wants.
        """
        call = self._calls[index]
        emits = emits or call.layer.estimator.replay

        def one_replay(sample: tf.Tensor, copies: int = 1) -> tf.Tensor:
            if call.layer.estimator.evaluations == 1:
                raise ValueError(
                    f"estimator {call.layer.estimator.id!r} evaluates the cost at another sample "
                    "than the drawn one, which it does not say: set its `evaluations`, by which "
                    "the certificate goes. Received: evaluations=1"
                )
            return tf.cast(self.run(index, sample, emits, copies), call.dist.dtype)

        def cost(sample: tf.Tensor) -> tf.Tensor:
            if sample.shape.rank == call.dist.shape.rank:
                return one_replay(sample)
            copies = sample.shape[0]
            if copies > 1 and self._model._rows_are_alike:
                return unfold(one_replay(fold(sample), copies), copies)
            return tf.stack([one_replay(one) for one in tf.unstack(sample)])

        return cost

    def run(self, index: int, sample: tf.Tensor, emits: str = "hard", copies: int = 1) -> tf.Tensor:
        """The cost `[copies * batch]` with another sample for call number `index`."""
        return self._run(index, sample, emits, copies)[0]

    def unchanged(self, copies: int) -> tuple[tf.Tensor, keras.StatelessScope]:
        """The cost with all samples as they were, and the state that the replay would leave."""
        f_b, scope, _ = self._run(len(self._calls), None, "hard", copies)
        return f_b, scope

    def prunes(self, index: int) -> bool:
        """Whether some later call is left alone since the graph shows that it does not depend."""
        later = self._calls[index + 1 :]
        return not all(self._is_downstream(index, call) for call in later)

    def recorded(self) -> list[tf.Tensor]:
        """What `rows` would be of a replay at the drawn sample of each call, by the hard pass."""
        return [_rows(self._f_b, self._calls[index + 1 :]) for index in range(len(self._calls))]

    def rows(self, index: int, sample: tf.Tensor, prune: bool = True) -> tf.Tensor:
        """All that a replay shows of each example, `[batch, numbers]`, in float64.

        The cost, theta and KL of the later calls.
        """
        f_b, _, calls = self._run(index, sample, "hard", 1, prune)
        return _rows(f_b, calls[index + 1 :])

    def rows_and_slopes(
        self, index: int, sample: tf.Tensor, emits: str
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The rows of a replay, and the cost's derivative in the sample, as rows.

        Of a cost that does not depend on the sample there is none, `[batch, 0]`.
        """
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sample)
            f_b, _, calls = self._run(index, sample, emits, 1)
        slope = tape.gradient(f_b, sample)
        slopes = tf.zeros([tf.shape(sample)[0], 0], tf.float64) if slope is None else row(slope)
        return _rows(f_b, calls[index + 1 :]), slopes

    def values(self, index: int, sample: tf.Tensor, emits: str) -> list[tf.Tensor]:
        """The cost, and a number for each later call that moves with its theta and its KL.

        Each `[batch]`; those of later calls are sums of all numbers with random weights.
        """
        f_b, _, calls = self._run(index, sample, emits, 1)
        return [f_b, *(_weighted(call) for call in calls[index + 1 :])]

    def added(self, index: int, sample: tf.Tensor) -> tf.Tensor:
        """The losses that layers add in a replay, `[n]`, in float64."""
        return _stacked(self._run(index, sample, "hard", 1)[1].losses)

    def added_by_hard_pass(self) -> tf.Tensor:
        """What `added` would be of a replay at the drawn samples, by the hard pass."""
        return _stacked(self._added)

    def _is_downstream(self, index: int, later: Call) -> bool:
        on = self._calls[index].layer
        return not self._model._graph_tells or may_depend(self._model, self._calls, later.layer, on)

    def _run(self, index, sample, emits, copies, prune=True):
        def is_downstream(later: Call) -> bool:
            return not prune or self._is_downstream(index, later)

        replay = Replay(self._calls, index, sample, emits, is_downstream, copies)
        with keras.StatelessScope(self._state, collect_losses=True) as scope:
            _, f_b = run_with_cost(self._model, replay, Batch(*tile(self._batch, copies)))
        if len(replay.calls) != len(self._calls):
            raise ValueError(
                f"{_SAME_CALLS} A replay made {len(replay.calls)} of the {len(self._calls)} calls."
            )
        return f_b, scope, replay.calls


def _rows(f_b: tf.Tensor, calls: list[Call]) -> tf.Tensor:
    values = [f_b]
    for call in calls:
        values += [*tf.nest.flatten(call.theta), *([] if call.kl is None else [call.kl])]
    return tf.concat([row(value) for value in values], -1)


def _stacked(losses: list[tf.Tensor]) -> tf.Tensor:
    values = [tf.cast(tf.reduce_sum(loss), tf.float64) for loss in losses]
    return tf.stack(values) if values else tf.zeros([0], tf.float64)


def _weighted(call: Call) -> tf.Tensor:
    """The sum of theta and KL of a call with random weights, `[batch]`."""
    values = [*tf.nest.flatten(call.theta), *([] if call.kl is None else [call.kl])]
    sums = []
    for number, value in enumerate(values):
        weights = tf.random.stateless_normal(tf.shape(value)[1:], [number, 0], dtype=value.dtype)
        sums.append(tf.cast(sum_event(weights * value), call.dist.dtype))
    return tf.add_n(sums)


def row(value: tf.Tensor) -> tf.Tensor:
    """`[batch, ...]` as `[batch, numbers]`."""
    return tf.reshape(tf.cast(value, tf.float64), [tf.shape(value)[0], -1])
