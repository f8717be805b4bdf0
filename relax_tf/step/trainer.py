"""RelaxTrainer: Keras's training step for models with samples.

One training step: `estimate_batch` runs the hard pass, the replays and the estimators; the
surrogate carries their gradients to the weights; the control variates descend their own loss.
"""

import functools
from typing import Any

import keras
import tensorflow as tf

from relax_tf.estimators.learning import learning
from relax_tf.keras_internals import all_layers
from relax_tf.layers import StochasticLayer
from relax_tf.layers.passes import Latent
from relax_tf.optimizers import relax_optimizer, wrap_optimizer
from relax_tf.step.certificate import certify
from relax_tf.step.cost import default_cost
from relax_tf.step.estimation import ModelEstimate, estimate_batch
from relax_tf.step.evaluation import EvaluationSteps
from relax_tf.step.finite import zero_unless
from relax_tf.step.first_batch import make_variables_of_step, shown_batches
from relax_tf.step.foreign_seeds import load_seeds, save_seeds
from relax_tf.step.hard_pass import Batch, as_batch
from relax_tf.step.logs import Logs, batch_size, global_norm
from relax_tf.step.no_data import no_data
from relax_tf.step.sharing import refuse_shared_layers
from relax_tf.step.strategies import check_strategy
from relax_tf.validation import boolean, nan_unless


class RelaxTrainer(EvaluationSteps, Logs):
    """The training half of `RelaxModel`, apart from how Keras constructs models."""

    _certifies = True
    # Whether several passes of a batch may be one of a longer batch; `check` finds out.
    _rows_are_alike = False
    # Whether the graph of a functional model says what depends on what; `check` finds out.
    _graph_tells = True
    _relax_optimizer = None

    @property
    def certify(self) -> bool:
        """Whether `fit` certifies the model, on its first batch and some later ones (see `check`).

        False insists on training a model that fails.
        """
        return self._certifies

    @certify.setter
    def certify(self, value: bool) -> None:
        self._certifies = boolean(value, "certify")

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
        return default_cost(self, y, y_pred, latents, sample_weight)

    def _overrides(self, method: str) -> bool:
        return getattr(type(self), method) is not getattr(RelaxTrainer, method)

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
        return estimate_batch(self, as_batch(x, y, sample_weight))[0]

    def check(self, x: Any, y: Any = None, sample_weight: Any = None) -> None:
        """Certifies on one batch that the estimators' assumptions hold in this model.

        `fit` and `train_on_batch` do it by themselves on their first batch, and on the 100th, the
        1000th and so on, unless `model.certify = False`. Measured are, for each stochastic layer
        whose estimator is given the cost: (a) that a replay at the drawn sample gives back the cost
        of the hard pass, if the estimator evaluates the cost at several samples; (b) that changing
        the samples of some examples changes no other example's cost; (c) that the cost changes
        between two samples as its derivative says, if the estimator relies on that; (d) that no
        loss which a layer adds (`add_loss`, an activity regulariser) depends on the samples; (e)
        that a distribution of your own agrees with itself. Takes about as long as tracing one step,
        and leaves variables, seeds and metrics as they were.

        Args:
            x, y, sample_weight: one batch, as `fit` would pass it, of at least two examples whose
                costs are finite and not all zero.

        Raises:
            ValueError: if one of the five does not hold; it names the property, the layer, the
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
        if not certify(self, as_batch(x, y, sample_weight)).conclusive:
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
        if theirs and not self._overrides("compute_cost"):
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
            x = no_data(self, "fit", batch_size, kwargs)
            batch_size, kwargs["shuffle"] = None, False
        return super().fit(x, y, batch_size, *args, **kwargs)

    def make_train_function(self, force=False):
        check_strategy(self)  # for `train_on_batch`
        if self._training_has_changed() or self.train_function is None or force:
            self.train_function = shown_batches(self, super().make_train_function)
        return self.train_function

    def _certify(self, data: Any) -> bool:
        """Certifies the model on a batch, if it is to be; returns whether the batch could tell."""
        if not self.certify:
            if all(layer.built for layer in all_layers(self)):  # no more variables are to come
                make_variables_of_step(self, None, None, ())
            return True
        self._check_model()
        batch = as_batch(*keras.utils.unpack_x_y_sample_weight(data))
        found = certify(self, batch)
        make_variables_of_step(self, batch.y, found.y_pred, found.terms)
        return found.conclusive

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
        if not self.compiled:
            raise ValueError(
                f"a training step needs an optimizer: call `compile` of {self.name!r} first."
            )
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

        loss = nan_unless(finite, result.surrogate)
        self._track_loss(x, y, y_pred, sample_weight, loss)
        self._track_parts(hard, batch_size(x))
        by_variable = dict(zip(map(id, variables), gradients, strict=True))
        for call in hard.calls:
            phi = map(id, call.layer.estimator.trainable_variables)
            norm = global_norm([by_variable[variable] for variable in phi])
            call.layer.tracked.update(
                {
                    "second_moment": result.estimates[call.name].second_moment,
                    "control_variate_norm": norm / scale,
                },
                examples=batch_size(x),
                learned=due,
            )
        logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        if any(not call.layer.estimator.hard for call in hard.calls):
            logs["relaxed_loss"] = logs["loss"]
        return logs

    def _stochastic_layers(self, teachers: bool = False) -> list[StochasticLayer]:
        layers = [layer for layer in all_layers(self) if isinstance(layer, StochasticLayer)]
        return layers if teachers else [layer for layer in layers if not layer._predicts_alone]

    # Saving.

    def save_own_variables(self, store):
        super().save_own_variables(store)
        save_seeds(self, store)

    def load_own_variables(self, store):
        super().load_own_variables(load_seeds(self, store))

    @property
    def optimizer(self) -> keras.optimizers.Optimizer:
        """A `RelaxOptimizer`, inside loss scaling if there is any; None before `compile`."""
        return self._relax_optimizer

    @optimizer.setter
    def optimizer(self, optimizer) -> None:
        self._relax_optimizer = None if optimizer is None else wrap_optimizer(optimizer)
