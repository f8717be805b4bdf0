"""What a RelaxModel logs: its loss, the parts of its cost, and each layer's metrics."""

import functools
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from relax_tf.estimators.estimate import batch_mean
from relax_tf.keras_internals import TrainerHooks, compile_loss, compile_metrics, loss_tracker
from relax_tf.layers.passes import Pass
from relax_tf.step.finite import warn_if_not_finite
from relax_tf.step.scales import warn_of_scales


class Logs(TrainerHooks):
    """The logging part of a `RelaxModel`."""

    # Of how many numbers of an example the loss beside a KL is a mean.
    _averaged_over = 1
    _warned_of_scales = False

    def get_metrics_result(self) -> dict[str, Any]:
        self._refuse_names_of_others()
        results = super().get_metrics_result()
        if tf.executing_eagerly():
            warn_if_not_finite(self.name, self._stochastic_layers())
            self._warn_of_scales(results)
        return results

    def _warn_of_scales(self, results: dict[str, Any]) -> None:
        """Once, as soon as there are numbers."""
        loss = float(results.get("compiled_loss", 0))
        if self._warned_of_scales or self._averaged_over == 1 or loss == 0:
            return
        kls = [results.get(f"{layer.name}_kl", 0) for layer in self._stochastic_layers()]
        kl = float(sum(kls))
        self._warned_of_scales = warn_of_scales(self.name, loss, kl, self._averaged_over)

    def _refuse_names_of_others(self) -> None:
        """Raises a ValueError if a term of the cost would be logged in the place of a metric."""
        if not self._term_metrics:
            return
        compiled = compile_metrics(self)
        others = [m for m in (*super().metrics, *self._layer_metrics()) if m is not compiled]
        names = {"relaxed_loss", *(metric.name for metric in others)}
        if compiled is not None and compiled.built:
            names.update(compiled.result())
        if taken := sorted(names & self._term_metrics.keys()):
            raise ValueError(
                "the terms of a cost are logged by their names, and there is a metric of this name "
                f"already: give the term another one. Received: {taken[0]!r}"
            )

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [*super().metrics, *self._term_metrics.values(), *self._layer_metrics()]

    def _logs_without_names(self, logs):
        """Those of Keras alone: a model without compiled metrics returns one number."""
        ours = {metric.name for metric in self._layer_metrics()}
        ours |= {*self._term_metrics, "relaxed_loss"}
        return {name: value for name, value in logs.items() if name not in ours}

    def _layer_metrics(self, of_training_only: bool = False) -> list[keras.metrics.Metric]:
        return [
            metric
            for layer in self._stochastic_layers()
            for name, metric in layer.tracked.metrics.items()
            if not (of_training_only and name == "kl")
        ]

    def _training_only(self) -> set[str]:
        return {metric.name for metric in self._layer_metrics(of_training_only=True)}

    @functools.cached_property
    def _term_metrics(self) -> dict[str, keras.metrics.Mean]:
        """Of the cost's terms, by name; made when a term is first seen."""
        return {}

    def _term_metric(self, name: str) -> keras.metrics.Mean:
        if name not in self._term_metrics:
            self._term_metrics[name] = keras.metrics.Mean(name=name)
        return self._term_metrics[name]

    def _make_metrics(self, y: Any, y_pred: Any, terms: Iterable[str]) -> None:
        """Those of a step, given targets, shapes of outputs (or None), and names of cost terms."""
        compiled = compile_metrics(self)
        known = y is not None and y_pred is not None
        if known and compiled is not None and not compiled.built:
            compiled.build(y, y_pred)
        for name in terms:
            self._term_metric(name)

    def _track_parts(self, a_pass: Pass, examples: tf.Tensor) -> None:
        """Takes in each layer's KL, in nats and unweighted, and the terms of the cost."""
        kls = {}
        for call in a_pass.calls:
            if call.kl is not None:
                kls.setdefault(call.layer, []).append(call.kl)
        for layer, of_calls in kls.items():
            layer.tracked.update({"kl": batch_mean(tf.add_n(of_calls))}, examples)
        for name, term in a_pass.terms.items():
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            if name not in self._term_metrics and replicas > 1:
                continue  # a replica cannot make variables
            metric = self._term_metric(name)
            mean = batch_mean(tf.cast(term, metric.dtype))
            metric.update_state(mean, sample_weight=tf.cast(examples, metric.dtype))

    def _logs_of_epoch(self, logs):
        """The metrics over all replicas.

        Keras recognises them if a step logs all of them. Ours log some in training only, and one
        under two names; without this the results of the replicas would be averaged instead.
        """
        results = self.get_metrics_result()
        if "relaxed_loss" in logs:
            results["relaxed_loss"] = results["loss"]
        if set(logs) in (set(results), set(results) - self._training_only()):
            return {name: results[name] for name in logs}
        return logs

    def _track_loss(self, x, y, y_pred, sample_weight, loss) -> None:
        loss_tracker(self).update_state(loss, sample_weight=batch_size(x))
        compiled = compile_loss(self)
        if compiled is not None and compiled.metrics:
            compiled(y, y_pred, sample_weight)  # updates the metric of each output


def batch_size(x: Any) -> tf.Tensor:
    return tf.shape(next(leaf for leaf in keras.tree.flatten(x) if leaf is not None))[0]


def global_norm(gradients: list[tf.Tensor]) -> tf.Tensor:
    """As `tf.linalg.global_norm`; XLA on CPUs is several times faster at a product with ones."""
    sums = [tf.zeros([])]
    for gradient in gradients:
        squares = tf.reshape(tf.square(gradient), [-1, (1, *gradient.shape)[-1]])
        ones = tf.ones([squares.shape[-1], 1], squares.dtype)
        sums.append(tf.cast(tf.reduce_sum(squares @ ones), tf.float32))
    return tf.sqrt(tf.add_n(sums))
