"""RelaxTrainer: Keras's training, evaluation and prediction steps for models with samples.

One training step: `estimate_batch` runs the hard pass, the replays and the estimators; the
surrogate carries their gradients to the weights; the control variates descend their own loss.
"""

import functools
from typing import Any

import keras
import tensorflow as tf

from relax_tf import losses
from relax_tf.estimators.estimate import batch_mean
from relax_tf.estimators.learning import learning
from relax_tf.keras_internals import TrainerHooks, all_layers, compile_loss, loss_tracker
from relax_tf.layers import StochasticLayer
from relax_tf.layers.passes import EvaluationPass, Latent, Pass, active_pass
from relax_tf.optimizers import relax_optimizer, wrap_optimizer
from relax_tf.step.averages import mean_over_samples
from relax_tf.step.certificate import certify
from relax_tf.step.estimation import ModelEstimate, estimate_batch, summed
from relax_tf.step.finite import warn_if_not_finite, zero_unless
from relax_tf.step.first_batch import shown_first_batch
from relax_tf.step.foreign_seeds import load_seeds, save_seeds
from relax_tf.step.hard_pass import Batch, LiveScope, ensure_built, penalties, run
from relax_tf.step.no_data import no_data
from relax_tf.step.scales import warn_of_scales
from relax_tf.step.sharing import refuse_shared_layers
from relax_tf.step.strategies import check_strategy
from relax_tf.validation import positive_integer


class RelaxTrainer(TrainerHooks):
    """The training half of `RelaxModel`, apart from how Keras constructs models."""

    # Whether `fit` certifies the model on its first batch (see `check`). False insists on training
    # a model that fails.
    certify = True
    # Whether several passes of a batch may be one of a longer batch; `check` finds out.
    _rows_are_alike = False
    # Whether the graph of a functional model says what depends on what; `check` finds out.
    _graph_tells = True
    _evaluation_samples = 1
    # Of how many numbers of an example the loss beside a KL is a mean.
    _averaged_over = 1
    _warned_of_scales = False

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

    # The cost.

    def compute_cost(
        self,
        x: Any,
        y: Any,
        y_pred: Any,
        latents: dict[str, Latent],
        sample_weight: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """The cost of each example, `[batch]`: override it for a cost of your own.

        It runs in every pass, also in replays with relaxed samples, so it must use the `y_pred`
        and the `latents` that it is given and keep no state. It may call layers of the model; a
        stochastic layer that it calls is estimated like any other, and adds its latent to
        `latents` by the call.

        Args:
            x, y, sample_weight: the batch.
            y_pred: the model's output in this pass.
            latents: for each stochastic layer by name (`name:1` for a second call) its
                `theta`, `sample`, `dist` and `kl` of this pass.
            sample_weight: `[batch]`, or one such for each output (their mean weighs the KL), or
                None; multiplies the example's whole cost.

        Returns:
            `[batch]`, or a dict of terms `[batch]` whose sum is the cost and whose means are logged
            by their names (on several replicas the sum alone is logged). By default the compiled
            losses, weighted by `loss_weights`, plus every layer's KL.
        """
        del x
        kls = [latent.kl for latent in latents.values() if latent.kl is not None]
        parts = []
        compiled = compile_loss(self)
        if compiled is not None:
            parts.append(losses.per_example(compiled, y, y_pred, sample_weight))
            self._name_compiled_loss(parts[0], alone=not kls)
            if kls and not self._overrides_compute_cost():
                self._averaged_over = losses.averaged_over(compiled, y_pred)
            if any(layer.estimator.joint for layer in self._stochastic_layers()):
                losses.refuse_sums(compiled)
        if kls:
            parts.append(_weighted(tf.add_n(kls), sample_weight))
        if not parts:
            raise ValueError(
                f"model {self.name!r} has no cost: compile it with a `loss`, give a stochastic "
                "layer a `prior`, or override `compute_cost`."
            )
        return tf.add_n([tf.cast(part, parts[-1].dtype) for part in parts])

    def _name_compiled_loss(self, loss: tf.Tensor, alone: bool) -> None:
        """Has the compiled loss logged, if it is one and not the whole cost.

        Of several Keras logs each.
        """
        current, whole = active_pass(), alone and not self._overrides_compute_cost()
        if current is not None and not whole and not compile_loss(self).metrics:
            current.terms["compiled_loss"] = loss

    def _overrides_compute_cost(self) -> bool:
        return type(self).compute_cost is not RelaxTrainer.compute_cost

    # Estimates.

    def estimate(self, x: Any, y: Any = None, sample_weight: Any = None) -> ModelEstimate:
        """Estimates the gradient of the cost on one batch, for custom loops and diagnostics.

        Args:
            x, y, sample_weight: one batch, as `fit` would pass it.

        Returns:
            A `ModelEstimate`. Call under a `tf.GradientTape` to differentiate its `surrogate`
            and `control_variate_loss`; their gradients reach disjoint sets of variables. Like a
            training step it draws from the layers' generators and moves their state.

        Raises:
            ValueError: if the model has no stochastic layer or no cost, or if the cost is not one
                value per example or lacks a gradient that an estimator needs. Whether the estimates
                are unbiased in this model is for `check` to say.

        Example:

        >>> inputs = keras.Input([5])
        >>> b = relax_tf.StochasticBinaryLayer(3, estimator="relax", name="b")(inputs)
        >>> model = relax_tf.RelaxModel(inputs, keras.layers.Dense(1)(b))
        >>> model.compile("sgd", loss="mse")
        >>> with tf.GradientTape() as tape:
        ...     result = model.estimate(tf.ones([8, 5]), tf.ones([8, 1]))
        >>> gradients = tape.gradient(result.surrogate, model.trainable_variables)
        >>> result.estimates["b"].gradient.shape
        TensorShape([8, 3])
        """
        self._check_model()
        return estimate_batch(self, _tensors(x, y, sample_weight))[0]

    def check(self, x: Any, y: Any = None, sample_weight: Any = None) -> None:
        """Certifies on one batch that the estimators' assumptions hold in this model.

        `fit` and `train_on_batch` do it by themselves on their first batch, unless
        `model.certify = False`. Measured are, for each stochastic layer whose estimator is given
        the cost: (a) that a replay at the drawn sample gives back the cost of the hard pass, if the
        estimator evaluates the cost at several samples; (b) that changing the samples of some
        examples changes no other example's cost; (c) that the cost changes between two samples as
        its derivative says, if the estimator relies on that. Takes about as long as tracing one
        step, and leaves variables, seeds and metrics as they were.

        Args:
            x, y, sample_weight: one batch, as `fit` would pass it, of at least two examples whose
                costs are finite and not all zero.

        Raises:
            ValueError: if one of the three does not hold; it names the property, the layer, the
                numbers, likely causes and what to do. If the batch cannot tell.

        Example:

        >>> inputs = keras.Input([5])
        >>> b = relax_tf.StochasticBinaryLayer(3, name="b")(inputs)
        >>> outputs = keras.layers.BatchNormalization()(b)
        >>> model = relax_tf.RelaxModel(inputs, outputs)
        >>> model.compile("sgd", loss="mse")
        >>> model.check(tf.ones([8, 5]), tf.ones([8, 3]))
        Traceback (most recent call last):
        ...
        ValueError: RelaxModel ... couples the examples of a batch: ...
        """
        self._check_model()
        if not certify(self, _tensors(x, y, sample_weight)):
            raise ValueError(
                "this batch cannot tell: pass at least two examples, whose costs are finite and "
                "not all zero."
            )

    def _check_model(self) -> None:
        self._refuse_compute_loss()
        refuse_shared_layers(self)

    def _refuse_compute_loss(self) -> None:
        """Raises a ValueError if Keras's hook for the loss is overridden and ours is not."""
        theirs = getattr(self.compute_loss, "__func__", None) is not keras.Model.compute_loss
        if theirs and not self._overrides_compute_cost():
            raise ValueError(
                f"{type(self).__name__} overrides `compute_loss`, which returns one scalar, but "
                "gradients through samples need one value per example. Override `compute_cost("
                "self, x, y, y_pred, latents, sample_weight=None)`, which returns shape [batch]."
            )

    # Keras's steps.

    @functools.wraps(keras.Model.fit)
    def fit(self, x=None, y=None, batch_size=None, *args, **kwargs):
        check_strategy(self)
        if x is None:
            x = no_data(self, batch_size, kwargs.get("steps_per_epoch"))
            batch_size, kwargs["shuffle"] = None, False
        return super().fit(x, y, batch_size, *args, **kwargs)

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args, **kwargs):
        check_strategy(self)
        return super().evaluate(*args, **kwargs)

    def make_train_function(self, force=False):
        check_strategy(self)  # for `train_on_batch`
        if self.train_function is None or force:
            super().make_train_function(force)
            self.train_function = shown_first_batch(
                self.train_function,
                self._certify,
                self.steps_per_execution,
                self.distribute_strategy,
            )
        return self.train_function

    def _certify(self, data: Any) -> bool:
        """Certifies the model on a batch; returns whether the batch could tell."""
        if not self.certify:
            return True
        self._check_model()
        return certify(self, _tensors(*keras.utils.unpack_x_y_sample_weight(data)))

    def make_test_function(self, force=False):
        check_strategy(self)
        return super().make_test_function(force or self._evaluation_has_changed("test"))

    def make_predict_function(self, force=False):
        return super().make_predict_function(force or self._evaluation_has_changed("predict"))

    def _evaluation_has_changed(self, function: str) -> bool:
        """Whether layers emit something else, or more, than when Keras traced this function."""
        now = [self.evaluation_samples, *(layer.inference for layer in self._stochastic_layers())]
        before = self._traced_evaluation.get(function, now)
        self._traced_evaluation[function] = now
        return now != before

    @functools.cached_property
    def _traced_evaluation(self) -> dict[str, list[Any]]:
        return {}

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One update on one batch: what `fit` repeats, and a loop of your own may.

        Under `tf.distribute` it is the step of one replica. `fit` needs no more than a model that
        was built and compiled in `strategy.scope()`, except on several machines, where Keras's
        `fit` fails. There the same program runs on each machine, with this loop:

            strategy = tf.distribute.MultiWorkerMirroredStrategy()
            with strategy.scope():
                model = ...  # built and compiled
                model.optimizer.build(model.trainable_variables)

            @tf.function(autograph=False)
            def step(batch):
                strategy.run(model.train_step, args=(batch,))

            for epoch in range(epochs):
                model.reset_metrics()
                for batch in strategy.experimental_distribute_dataset(dataset):
                    step(batch)
                logs = model.get_metrics_result()  # over all replicas

        Replicas draw different noise. Their gradients are averaged, each that of the mean cost of
        its share of the batch, as Keras does it; so shares of one size give the mean over the
        batch. `test_step` serves in the same way for evaluation. `examples/distributed.py` is a
        whole program.

        Args:
            data: `x`, `(x, y)` or `(x, y, sample_weight)`.

        Returns:
            The metrics so far by name, of this replica.
        """
        self._check_model()
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        scale = self.optimizer.scale_loss(1.0 / replicas)
        due = relax_optimizer(self.optimizer).control_variate_due
        with tf.GradientTape() as tape, learning(due):
            batch = Batch(x, y, sample_weight)
            result, hard, y_pred = estimate_batch(self, batch)
            # The two share no path to any variable, so one backward pass serves both.
            total = scale * (result.surrogate + result.control_variate_loss)
        variables = self.trainable_variables
        finite = tf.math.is_finite(result.surrogate + result.control_variate_loss)
        gradients = [zero_unless(finite, g) for g in tape.gradient(total, variables)]
        if variables:
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))

        loss = tf.where(finite, result.surrogate, float("nan"))
        self._track_loss(x, y, y_pred, sample_weight, loss)
        self._track_parts(hard, _batch_size(x))
        by_variable = dict(zip(map(id, variables), gradients, strict=True))
        for call in hard.calls:
            phi = map(id, call.layer.estimator.trainable_variables)
            norm = _global_norm([by_variable[variable] for variable in phi])
            call.layer.tracked.update(
                {
                    "second_moment": result.estimates[call.name].second_moment,
                    "control_variate_norm": norm / scale,
                },
                examples=_batch_size(x),
                learned=due,
            )
        logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        if any(not call.layer.estimator.hard for call in hard.calls):
            logs["relaxed_loss"] = logs["loss"]
        return logs

    def test_step(self, data):
        self._refuse_compute_loss()
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        ensure_built(self, x)

        def once():
            y_pred, loss, evaluation = self._evaluate_once(x, y, sample_weight)
            self._track_loss(x, y, y_pred, sample_weight, loss)
            self._track_parts(evaluation, _batch_size(x))
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

    def get_metrics_result(self) -> dict[str, Any]:
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

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [*super().metrics, *self._term_metrics.values(), *self._layer_metrics()]

    def _logs_without_names(self, logs):
        """Without the parts of the loss: a model without compiled metrics returns one number."""
        parts = {f"{layer.name}_kl" for layer in self._stochastic_layers()} | {*self._term_metrics}
        return {name: value for name, value in logs.items() if name not in parts}

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

    def _track_parts(self, a_pass: Pass, examples: tf.Tensor) -> None:
        """Takes in each layer's KL, in nats and unweighted, and the terms of the cost."""
        kls = {}
        for call in a_pass.calls:
            if call.kl is not None:
                kls.setdefault(call.layer, []).append(call.kl)
        for layer, of_calls in kls.items():
            layer.tracked.update({"kl": batch_mean(tf.add_n(of_calls))}, examples)
        for name, term in a_pass.terms.items():
            if name not in self._term_metrics:
                if tf.distribute.get_strategy().num_replicas_in_sync > 1:
                    continue  # a replica cannot make variables
                self._term_metrics[name] = keras.metrics.Mean(name=name)
            metric = self._term_metrics[name]
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

    def _stochastic_layers(self) -> list[StochasticLayer]:
        return [layer for layer in all_layers(self) if isinstance(layer, StochasticLayer)]

    def _track_loss(self, x, y, y_pred, sample_weight, loss) -> None:
        loss_tracker(self).update_state(loss, sample_weight=_batch_size(x))
        compiled = compile_loss(self)
        if compiled is not None and compiled.metrics:
            compiled(y, y_pred, sample_weight)  # updates the metric of each output

    # Saving.

    def save_own_variables(self, store):
        super().save_own_variables(store)
        save_seeds(self, store)

    def load_own_variables(self, store):
        super().load_own_variables(load_seeds(self, store))

    @property
    def optimizer(self) -> keras.optimizers.Optimizer:
        """The compiled optimizer: a `RelaxOptimizer`, inside loss scaling if there is any."""
        return self._relax_optimizer

    @optimizer.setter
    def optimizer(self, optimizer) -> None:
        self._relax_optimizer = None if optimizer is None else wrap_optimizer(optimizer)


def _tensors(x: Any, y: Any, sample_weight: Any) -> Batch:
    return keras.tree.map_structure(
        lambda v: v if v is None or tf.is_tensor(v) else tf.convert_to_tensor(v),
        Batch(x, y, sample_weight),
    )


def _global_norm(gradients: list[tf.Tensor]) -> tf.Tensor:
    """As `tf.linalg.global_norm`; XLA on CPUs is several times faster at a product with ones."""
    sums = [tf.zeros([])]
    for gradient in gradients:
        squares = tf.reshape(tf.square(gradient), [-1, (1, *gradient.shape)[-1]])
        ones = tf.ones([squares.shape[-1], 1], squares.dtype)
        sums.append(tf.cast(tf.reduce_sum(squares @ ones), tf.float32))
    return tf.sqrt(tf.add_n(sums))


def _batch_size(x: Any) -> tf.Tensor:
    return tf.shape(keras.tree.flatten(x)[0])[0]


def _weighted(kl: tf.Tensor, sample_weight: Any) -> tf.Tensor:
    """The KL times the example's weight; with one weight for each output, times their mean."""
    weights = [weight for weight in keras.tree.flatten(sample_weight) if weight is not None]
    for weight in weights:
        if weight.shape.rank > 1 and weight.shape[1:].num_elements() != 1:
            raise ValueError(
                "`sample_weight` must have one value per example, shape [batch], in a model with "
                f"KL terms. Received shape: {tuple(weight.shape)}"
            )
    if not weights:
        return kl
    flat = [tf.reshape(tf.cast(weight, kl.dtype), [-1]) for weight in weights]
    return kl * tf.add_n(flat) / len(flat)
