"""A look at a batch of an iterator, which then goes on as if nobody had looked."""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

_OVERRIDDEN = (
    "It was found on a batch as `fit` passes it, but `train_step` is overridden. If that changes "
    "the batch, let the dataset do it, or set `model.certify = False` and call `model.check` on "
    "what `super().train_step` receives."
)


def shown_batches(model: Any, make: Callable) -> Callable:
    """A Keras train function that shows some of the batches it is given to `model._certify`.

    That is called with the first batch (of one replica) of some calls: see `_next_look`. What it
    finds may change how the step is made.

    Args:
        model: a compiled `RelaxModel`.
        make: makes Keras's own train function of the model, from an iterator to logs. One call of
            it takes up to `steps_per_execution` batches.
    """
    calls, due, plain, made_for = 0, 1, None, None

    def train_function(iterator):
        nonlocal calls, due, plain, made_for
        call = calls + 1
        if call >= due and (model.certify or plain is None):
            batch = next(iterator)
            try:
                told = model._certify(_of_one_replica(batch, model.distribute_strategy))
            except Exception as error:
                error.add_note(f"This was found in call {call} of the training step.")
                if model._overrides("train_step"):
                    error.add_note(_OVERRIDDEN)
                raise
            if model.certify:
                due = _next_look(call, told)
            iterator = _put_back(batch, iterator, model.steps_per_execution)
        found = model.jit_compile, model._rows_are_alike, model._graph_tells
        if found != made_for:
            shown = model.train_function  # which somebody may have wrapped
            make(force=True)
            plain, model.train_function, made_for = model.train_function, shown, found
        logs = plain(iterator)
        calls = call  # What was due and failed stays due, and the end of the data is no call.
        return logs

    return train_function


def _next_look(call: int, told: bool) -> int:
    """The call to look at next: the 2nd, the 4th, the 8th and so on, until a batch could tell.

    Then the 100th, the 1000th and so on: what a schedule lets in, or a counter, or a callback, was
    not there at first.
    """
    return 10 ** max(2, len(str(call))) if told else 2 * call


def make_variables_of_step(model: Any, y: Any, y_pred: Any, terms: Iterable[str]) -> None:
    """Makes what Keras would make in the first step: metrics and the optimizer's variables.

    TensorFlow traces a function that makes variables twice, and most of the time of a first step is
    tracing.

    Args:
        model: a compiled `RelaxModel`, built.
        y: the batch's targets.
        y_pred: the model's output, or tensors of its shapes; None if they are not known.
        terms: names of the cost's terms.
    """
    if model.distribute_strategy.num_replicas_in_sync > 1:
        return  # Keras has made them
    with model.distribute_strategy.scope():
        model._make_metrics(y, y_pred, terms)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)


def _of_one_replica(batch: Any, strategy: tf.distribute.Strategy) -> Any:
    return keras.tree.map_structure(
        lambda value: (
            strategy.experimental_local_results(value)[0]
            if isinstance(value, tf.distribute.DistributedValues)
            else value
        ),
        batch,
    )


def _put_back(batch: Any, iterator: Iterator, steps: int) -> Iterator:
    """An iterator over this batch and the next `steps - 1` of the other one.

    Of a `tf.data.Iterator` it makes another that the same compiled step takes. TensorFlow never
    lets go of a generator, so the generator holds what nobody has taken yet and nothing else: the
    iterator has threads and buffers.
    """
    rest = itertools.islice(iterator, steps - 1)
    if not isinstance(iterator, tf.data.Iterator) or _has_optionals(iterator.element_spec):
        return itertools.chain([batch], rest)
    left = collections.deque([batch, *rest])

    def batches():
        while left:
            yield left.popleft()

    dataset = tf.data.Dataset.from_generator(batches, output_signature=iterator.element_spec)
    options = tf.data.Options()
    options.autotune.enabled = False  # it makes TensorFlow wait when the iterator is dropped
    return iter(dataset.with_options(options))


def _has_optionals(spec: Any) -> bool:
    return any(isinstance(leaf, tf.OptionalSpec) for leaf in tf.nest.flatten(spec))
