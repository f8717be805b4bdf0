"""Evaluation and prediction: hard samples, or what `layer.inference` says; means over several."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from relax_tf.estimators.estimate import batch_mean
from relax_tf.keras_internals import all_layers
from relax_tf.layers.passes import EvaluationPass
from relax_tf.step.averages import mean_over_samples
from relax_tf.step.estimation import summed
from relax_tf.step.hard_pass import LiveScope, ensure_built, penalties, run
from relax_tf.step.logs import batch_size
from relax_tf.step.no_data import no_data
from relax_tf.step.strategies import check_strategy
from relax_tf.validation import positive_integer

# What is saved beside Keras's compile arguments, where it differs from this.
SETTINGS = {"evaluation_samples": 1, "certify": True}


@contextlib.contextmanager
def as_by_default(model: Any) -> Iterator[None]:
    """While active, the model has none of the settings that a plain model has not."""
    settings = {name: getattr(model, name) for name in SETTINGS if hasattr(model, name)}
    try:
        for name in settings:
            setattr(model, name, SETTINGS[name])
        yield
    finally:
        for name, value in settings.items():
            setattr(model, name, value)


class EvaluationSteps:
    """The evaluating half of a `RelaxModel`'s steps."""

    _evaluation_samples = 1

    @property
    def evaluation_samples(self) -> int:
        """How many samples of each example `evaluate`, validation and `predict` draw, by default 1.

        The loss is the mean over the samples' costs, an estimate of the same expectation with less
        variance. Predictions, and what compiled metrics see, are the mean over the samples'
        predictions (of outputs that are not floating point the first one's). May be assigned at any
        time, and takes effect in the next evaluation.

        Raises:
            TypeError, ValueError: on assignment of what is no positive integer.
        """
        return self._evaluation_samples

    @evaluation_samples.setter
    def evaluation_samples(self, value: int) -> None:
        self._evaluation_samples = positive_integer(value, "evaluation_samples")

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, x=None, y=None, batch_size=None, *args, **kwargs):
        check_strategy(self)
        if x is None:
            x, batch_size = no_data(self, "evaluate", batch_size, kwargs), None
        return super().evaluate(x, y, batch_size, *args, **kwargs)

    def make_test_function(self, force=False):
        check_strategy(self)
        return super().make_test_function(force or self._evaluation_has_changed("test"))

    def make_predict_function(self, force=False):
        return super().make_predict_function(force or self._evaluation_has_changed("predict"))

    def _evaluation_has_changed(self, function: str) -> bool:
        """Whether layers emit something else, or more, than when Keras made this function.

        Or XLA turned out not to compile the model.
        """
        now: dict[Any, Any] = {"samples": self.evaluation_samples, "XLA": self.jit_compile}
        for layer in self._stochastic_layers(teachers=True):
            now[id(layer)] = layer.inference, layer._assigned
        return self._has_changed(function, now)

    def _training_has_changed(self) -> bool:
        """Whether Keras made the train function of another model.

        Layers were frozen or unfrozen since, stochastic ones have another `kl` or `support`, or
        teachers emit something else.
        """
        return self._has_changed(
            "train",
            {
                id(layer): (layer.trainable, getattr(layer, "_assigned", None))
                for layer in all_layers(self)
            },
        )

    def _has_changed(self, function: str, now: dict[Any, Any]) -> bool:
        """Whether anything differs that was there before; a layer may make others when built."""
        before = self._traced_for.get(function, {})
        self._traced_for[function] = now
        return any(before.get(key, value) != value for key, value in now.items())

    @functools.cached_property
    def _traced_for(self) -> dict[str, dict[Any, Any]]:
        return {}

    def test_step(self, data):
        self._refuse_compute_loss()
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        ensure_built(self, x)

        def once():
            y_pred, loss, evaluation = self._evaluate_once(x, y, sample_weight)
            self._track_loss(x, y, y_pred, sample_weight, loss)
            self._track_parts(evaluation, batch_size(x))
            return y_pred

        y_pred = mean_over_samples(once, self.evaluation_samples)
        logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return {k: v for k, v in logs.items() if k not in self._training_only()}

    def _evaluate_once(self, x, y, sample_weight) -> tuple[Any, tf.Tensor, EvaluationPass]:
        """The output, the loss, a scalar, and their pass, with one sample of each layer."""
        evaluation = EvaluationPass()
        with LiveScope() as scope:
            y_pred = run(self, evaluation, x, training=False)
            with evaluation:
                latents = evaluation.latents
                cost = self.compute_cost(x, y, y_pred, latents, sample_weight=sample_weight)
                cost = evaluation.total(cost)
        added = [*scope.losses, *penalties(self, of_control_variates=False)]
        return y_pred, summed(batch_mean(cost), added), evaluation

    def predict_step(self, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        ensure_built(self, x)
        once = lambda: run(self, EvaluationPass(), x, training=False)  # noqa: E731
        return mean_over_samples(once, self.evaluation_samples)

    # Saving.

    @functools.wraps(keras.Model.get_compile_config)
    def get_compile_config(self):
        config = super().get_compile_config()
        settings = {name: getattr(self, name) for name in SETTINGS}
        changed = {name: value for name, value in settings.items() if value != SETTINGS[name]}
        return config and {**config, "jit_compile": self.jit_compile, **changed}

    @functools.wraps(keras.Model.compile_from_config)
    def compile_from_config(self, config):
        super().compile_from_config({k: v for k, v in config.items() if k not in SETTINGS})
        for name in SETTINGS.keys() & config.keys():
            setattr(self, name, config[name])
