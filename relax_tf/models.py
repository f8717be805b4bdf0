"""RelaxModel: a Keras model whose training step estimates gradients through its samples.

One step: a hard pass records what each stochastic layer drew; each layer's estimator turns the
cost into a gradient at its theta, replaying the model where it needs the cost elsewhere; the
surrogate carries those gradients to the weights; the control variates descend their own loss.
"""

import functools
import math
import warnings
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from relax_tf import losses
from relax_tf.batch_coupling import refuse_batch_normalization
from relax_tf.control_variates import is_control_variate
from relax_tf.distributions import Draw
from relax_tf.estimators.estimate import (
    Estimate,
    batch_mean,
    check_cost,
    package,
    path_to_theta,
)
from relax_tf.folding import fold, folded, tile, unfold
from relax_tf.graph import may_depend
from relax_tf.layers import StochasticLayer
from relax_tf.learning import learning
from relax_tf.optimizers import relax_optimizer, wrap_optimizer
from relax_tf.particles import estimate_particles, shared_particles
from relax_tf.passes import EvaluationPass, Latent, Pass, Replay, TrainingPass
from relax_tf.seeds import load_seeds, save_seeds
from relax_tf.strategies import check_strategy


class ModelEstimate(NamedTuple):
    """What `RelaxModel.estimate` returns.

    Attributes:
        estimates: an `Estimate` for each call of a stochastic layer, by name.
        surrogate: a scalar. Its value is the training loss, its gradient with respect to the
            model's parameters is the estimate.
        control_variate_loss: a scalar, the sum of what the control variates minimise. Its
            gradient reaches control-variate parameters only.
    """

    estimates: dict[str, Estimate]
    surrogate: tf.Tensor
    control_variate_loss: tf.Tensor


class RelaxTrainer:
    """The training half of `RelaxModel`, apart from how Keras constructs models."""

    # Whether batch normalisation may run in training mode downstream of a sample. It couples the
    # examples of a batch, so that each gradient takes credit for other examples' costs.
    allow_batch_normalization = False

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
        and the `latents` that it is given and keep no state.

        Args:
            x, y, sample_weight: the batch.
            y_pred: the model's output in this pass.
            latents: for each stochastic layer by name (`name:1` for a second call) its
                `theta`, `z`, `sample`, `dist` and `kl` of this pass.
            sample_weight: `[batch]`, or one such for each output (their mean weighs the KL), or
                None; multiplies the example's whole cost.

        Returns:
            By default the compiled losses, weighted by `loss_weights`, plus every layer's KL.
        """
        del x
        kls = [latent.kl for latent in latents.values() if latent.kl is not None]
        parts = []
        if self._compile_loss is not None:
            parts.append(losses.per_example(self._compile_loss, y, y_pred, sample_weight))
        if kls:
            parts.append(_weighted(tf.add_n(kls), sample_weight))
        if not parts:
            raise ValueError(
                f"model {self.name!r} has no cost: compile it with a `loss`, give a stochastic "
                "layer a `prior`, or override `compute_cost`."
            )
        return tf.add_n([tf.cast(part, parts[-1].dtype) for part in parts])

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
            ValueError: if the model has no stochastic layer or no cost, if the cost is not one
                value per example or lacks a gradient that an estimator needs, or if batch
                normalisation couples the examples downstream of a sample.

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
        x, y, sample_weight = keras.tree.map_structure(
            lambda value: None if value is None else tf.convert_to_tensor(value),
            (x, y, sample_weight),
        )
        return self._estimate(x, y, sample_weight)[0]

    def _estimate(self, x, y, sample_weight) -> tuple[ModelEstimate, TrainingPass, Any]:
        self._ensure_built(x)
        refuse_batch_normalization(self, x)
        particles = shared_particles(self._stochastic_layers(), sample_weight)
        x, y = tile((x, y), particles)
        # Each variable is read once, for the hard pass and all replays.
        state = [(variable, tf.convert_to_tensor(variable.value)) for variable in self.variables]
        frozen = [(variable, tf.stop_gradient(value)) for variable, value in state]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            hard = TrainingPass(tape)
            with _PassScope(state) as scope, folded(particles):
                y_pred = self._run(hard, x, training=True)
                if not hard.latents:
                    raise ValueError(
                        f"RelaxModel {self.name!r} called no stochastic layer: there is nothing to "
                        "estimate. Add one, such as relax_tf.StochasticBinaryLayer, or use a "
                        "keras.Model."
                    )
                f_b = self._cost(hard, x, y, y_pred, sample_weight)
            added = [*scope.losses, *_penalties(self, of_control_variates=False)]
            estimates, paths = {}, []
            for index, (name, latent) in enumerate(hard.latents.items()):
                if latent.layer.estimator.joint:
                    estimates[name], path = estimate_particles(latent, unfold(f_b, particles))
                    paths.append(path)
                elif latent.layer.estimator.needs_cost:
                    cost = self._replayed_cost(hard, index, frozen, x, y, sample_weight)
                    estimates[name] = _estimate_latent(latent, f_b, cost)
                    paths.append(path_to_theta(latent.dist, estimates[name].gradient, f_b))
            if particles > 1:
                f_b = next(iter(estimates.values())).cost
                y_pred = keras.tree.map_structure(lambda rows: unfold(rows, particles)[0], y_pred)
            objective = tf.add_n([batch_mean(f_b), *paths])
        estimates |= _pathwise_estimates(tape, objective, hard.latents, f_b)
        scope.commit()
        for latent in hard.latents.values():
            latent.layer.estimator.observe(tf.stop_gradient(f_b), tf.stop_gradient(latent.context))
        result = ModelEstimate(
            {name: estimates[name] for name in hard.latents},
            _sum(objective, added),
            _sum(
                tf.add_n([estimate.control_variate_loss for estimate in estimates.values()]),
                _penalties(self, of_control_variates=True),
            ),
        )
        return result, hard, y_pred

    def _ensure_built(self, x: Any) -> None:
        """Builds a subclassed model by a symbolic call: a pass must not see Keras doing it."""
        if not all(layer.built for layer in self._flatten_layers()):
            self(keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, t.dtype), x))

    def _run(self, a_pass: Pass, x: Any, training: bool) -> Any:
        with a_pass:
            return self(x, training=training) if self._call_has_training_arg else self(x)

    def _replayed_cost(self, hard: TrainingPass, index: int, frozen, x, y, sample_weight):
        """The cost as a function of one latent's sample, everything else as in the hard pass.

        The replay runs on the frozen state from before the hard pass: it draws the same dropout
        masks, moves no statistics, and no gradient of it reaches the model. Samples with a leading
        axis, `[K, batch, *event]`, run as one batch.
        """
        latent = list(hard.latents.values())[index]
        layer = latent.layer

        def is_downstream(other: StochasticLayer) -> bool:
            return may_depend(self, other, on=layer)

        def cost(sample: tf.Tensor) -> tf.Tensor:
            if sample.shape.rank > latent.dist.shape.rank:
                copies = sample.shape[0]
                return unfold(cost_of_rows(fold(sample), copies), copies)
            return cost_of_rows(sample, 1)

        def cost_of_rows(sample: tf.Tensor, copies: int) -> tf.Tensor:
            replay = Replay(hard, index, sample, layer.estimator.replay, copies, is_downstream)
            x_rows, y_rows, weight_rows = tile((x, y, sample_weight), copies)
            with keras.StatelessScope(frozen), folded(copies):
                y_pred = self._run(replay, x_rows, training=True)
                return self._cost(replay, x_rows, y_rows, y_pred, weight_rows)

        return cost

    def _cost(self, a_pass: Pass, x, y, y_pred, sample_weight) -> tf.Tensor:
        cost = self.compute_cost(x, y, y_pred, a_pass.latents, sample_weight=sample_weight)
        dist = next(iter(a_pass.latents.values())).dist
        return check_cost(cost, dist.shape[:1], dist.dtype)

    # Keras's steps.

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        check_strategy(self)
        return super().fit(*args, **kwargs)

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args, **kwargs):
        check_strategy(self)
        return super().evaluate(*args, **kwargs)

    def make_train_function(self, force=False):
        check_strategy(self)  # for `train_on_batch`
        return super().make_train_function(force)

    def make_test_function(self, force=False):
        check_strategy(self)
        return super().make_test_function(force)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One update on one batch: what `fit` repeats, and a loop of your own may.

        Under `tf.distribute` it is the step of one replica. `fit` needs no more than a model that
        was built and compiled in `strategy.scope()`, except on several machines, where Keras's
        `fit` fails. There the same program runs on each machine, with this loop:

            strategy = tf.distribute.MultiWorkerMirroredStrategy()
            with strategy.scope():
                model = ...  # built and compiled
                model.optimizer.build(model.trainable_variables)

            @tf.function
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
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        scale = self.optimizer.scale_loss(1.0 / replicas)
        due = relax_optimizer(self.optimizer).control_variate_due
        with tf.GradientTape() as tape, learning(due):
            result, hard, y_pred = self._estimate(x, y, sample_weight)
            # The two share no path to any variable, so one backward pass serves both.
            total = scale * (result.surrogate + result.control_variate_loss)
        variables = self.trainable_variables
        finite = tf.math.is_finite(result.surrogate + result.control_variate_loss)
        gradients = [_zero_unless(finite, g) for g in tape.gradient(total, variables)]
        if variables:
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))

        loss = tf.where(finite, result.surrogate, float("nan"))
        self._track_loss(x, y, y_pred, sample_weight, loss)
        by_variable = dict(zip(map(id, variables), gradients, strict=True))
        for name, latent in hard.latents.items():
            phi = map(id, latent.layer.estimator.trainable_variables)
            norm = _global_norm([by_variable[variable] for variable in phi])
            latent.layer.tracked.update(
                {
                    "second_moment": result.estimates[name].second_moment,
                    "control_variate_norm": norm / scale,
                },
                examples=_batch_size(x),
                learned=due,
            )
        logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        if any(not latent.layer.estimator.hard for latent in hard.latents.values()):
            logs["relaxed_loss"] = logs["loss"]
        return logs

    def test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._ensure_built(x)
        evaluation = EvaluationPass()
        with _PassScope() as scope:
            y_pred = self._run(evaluation, x, training=False)
            cost = self.compute_cost(x, y, y_pred, evaluation.latents, sample_weight=sample_weight)
        scope.commit()
        added = [*scope.losses, *_penalties(self, of_control_variates=False)]
        self._track_loss(x, y, y_pred, sample_weight, _sum(batch_mean(cost), added))
        logs = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return {k: v for k, v in logs.items() if k not in self._training_only()}

    def predict_step(self, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        self._ensure_built(x)
        return self._run(EvaluationPass(), x, training=False)

    def get_metrics_result(self) -> dict[str, Any]:
        results = super().get_metrics_result()
        if tf.executing_eagerly():
            _warn_if_not_finite(self.name, self._stochastic_layers())
        return results

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [*super().metrics, *self._training_metrics()]

    def _training_metrics(self) -> list[keras.metrics.Metric]:
        layers = self._stochastic_layers()
        return [metric for layer in layers for metric in layer.tracked.metrics.values()]

    def _training_only(self) -> set[str]:
        return {metric.name for metric in self._training_metrics()}

    def _get_metrics_result_or_logs(self, logs):
        """What Keras shows at the end of an epoch: the metrics over all replicas.

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
        return [layer for layer in self._flatten_layers() if isinstance(layer, StochasticLayer)]

    def _track_loss(self, x, y, y_pred, sample_weight, loss) -> None:
        self._loss_tracker.update_state(loss, sample_weight=_batch_size(x))
        if self._compile_loss is not None and self._compile_loss.metrics:
            self._compile_loss(y, y_pred, sample_weight)  # updates the metric of each output

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


class RelaxModel(RelaxTrainer, keras.Model):
    """A `keras.Model` that trains its stochastic layers with `compile` and `fit`.

    Build it like any Keras model, `RelaxModel(inputs, outputs)` or by subclassing. Each compiled
    loss is taken per example; the layers' KL terms join it; `sample_weight` multiplies the sum.
    Scalar `add_loss` terms and regularisers are added to the training loss as usual. A plain
    optimizer is wrapped in `relax_tf.RelaxOptimizer`. Logged are the loss (in nats, if the
    compiled loss is), each layer's second moment of the gradient estimate and the norm of its
    control variate's gradient. For another cost override `compute_cost`.

    Example:

    >>> inputs = keras.Input([4])
    >>> b = relax_tf.StochasticBinaryLayer(8, prior="uniform", name="b")(inputs)
    >>> model = relax_tf.RelaxModel(inputs, keras.layers.Dense(4)(b))
    >>> model.compile("adam", loss=relax_tf.losses.BernoulliNegativeLogLikelihood())
    >>> x = tf.ones([32, 4])
    >>> history = model.fit(x, x, verbose=0)
    >>> sorted(history.history)
    ['b_control_variate_norm', 'b_second_moment', 'loss']
    """

    def __new__(cls, *args, **kwargs):
        if cls is RelaxModel and _functional_arguments(args, kwargs):
            cls = _FunctionalRelaxModel
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        if not _functional_arguments(args, kwargs):
            if args:
                raise TypeError(
                    "a RelaxModel is built from inputs and outputs, or by subclassing. Of a list "
                    "of layers make `sequential = keras.Sequential([keras.Input(...), ...])` and "
                    f"`RelaxModel(sequential.inputs, sequential.outputs)`. Received: {args}"
                )
            super().__init__(**kwargs)
            return
        if not isinstance(self, _Functional):
            _make_functional(type(self))
        _Trainer.__init__(self)
        _Functional.__init__(self, *args, **kwargs)


# `keras.Model.__init__` turns a class that is given inputs and outputs into a functional one by
# rewriting its bases for good, RelaxModel's included, after which no other subclass could have a
# `call` of its own. So functional models are built by a twin that is functional from the start.

_Trainer = keras.Model.__bases__[0]
_x = keras.Input([1], name="x")  # named, so that users' models keep Keras's first automatic names
_Functional = type(keras.Model(_x, _x, name="functional_twin"))


@keras.saving.register_keras_serializable("relax_tf", "FunctionalRelaxModel")
class _FunctionalRelaxModel(RelaxModel, _Functional):
    """What `RelaxModel(inputs, outputs)` is."""

    def __reduce__(self):
        _, saved = super().__reduce__()  # pickle cannot find this class by its name
        return RelaxModel._unpickle_model, saved


_FunctionalRelaxModel.__name__ = _FunctionalRelaxModel.__qualname__ = "RelaxModel"


def _functional_arguments(args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether a model is constructed from inputs and outputs."""
    return len(args) == 2 or {"inputs", "outputs"} <= {*kwargs, *["inputs"][: len(args)]}


def _make_functional(cls: type) -> None:
    """Gives the twin's bases to a user's subclass that passes inputs and outputs to `super()`."""
    cls.__bases__ = tuple(
        _FunctionalRelaxModel if base is RelaxModel else base for base in cls.__bases__
    )
    for base in cls.__bases__:
        if issubclass(base, RelaxModel) and base is not _FunctionalRelaxModel:
            _make_functional(base)


class _PassScope(keras.StatelessScope):
    """Collects `add_loss` terms and what a pass would assign (seeds, statistics) until `commit`.

    Replays come in between and must not see it. There is a second reason to read each variable
    once and to write last: where the replays of a step read variables anew, TensorFlow's graph
    optimizer (2.21) was seen to let such a read slip behind the optimizer's update.
    """

    def __init__(self, state: list[tuple[keras.Variable, tf.Tensor]] | None = None):
        super().__init__(state, collect_losses=True)
        self._assigned = {}

    def add_update(self, update):
        self._assigned[id(update[0])] = update[0]
        super().add_update(update)

    def commit(self) -> None:
        for variable in self._assigned.values():
            variable.assign(self.get_current_value(variable))


def _penalties(model: keras.Model, of_control_variates: bool) -> list[tf.Tensor]:
    """The weight regularisers' losses of one of the two groups."""
    return [
        variable.regularizer(variable)
        for variable in model.trainable_weights
        if variable.regularizer is not None and is_control_variate(variable) == of_control_variates
    ]


def _global_norm(gradients: list[tf.Tensor]) -> tf.Tensor:
    """As `tf.linalg.global_norm`; XLA on CPUs is several times faster at a product with ones."""
    sums = [tf.zeros([])]
    for gradient in gradients:
        squares = tf.reshape(tf.square(gradient), [-1, (1, *gradient.shape)[-1]])
        ones = tf.ones([squares.shape[-1], 1], squares.dtype)
        sums.append(tf.cast(tf.reduce_sum(squares @ ones), tf.float32))
    return tf.sqrt(tf.add_n(sums))


def _zero_unless(finite: tf.Tensor, gradient: Any) -> Any:
    """The gradient of a step whose cost and estimates are finite; zeros in place of any other.

    A selection, not a conditional: XLA fuses it into the update, and no replica of a distributed
    step leaves the others waiting.
    """

    def zero_unless(values):
        return tf.where(finite, values, tf.zeros_like(values))

    if isinstance(gradient, tf.IndexedSlices):
        values = zero_unless(gradient.values)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return None if gradient is None else zero_unless(gradient)


def _warn_if_not_finite(model_name: str, layers: list[StochasticLayer]) -> None:
    """Names the layers whose estimates were not finite since their metrics were last reset."""
    moments = {
        layer.name: float(layer.tracked.metrics["second_moment"].result()) for layer in layers
    }
    names = [name for name, moment in moments.items() if not math.isfinite(moment)]
    if names:
        warnings.warn(
            f"RelaxModel {model_name!r}: the cost, or its gradient estimate, was NaN or infinite "
            f"at the samples of the stochastic layers {names}. The steps in which it was are "
            "logged with loss NaN and their gradients counted as zero, so the weights are as good "
            "as before. `keras.callbacks.TerminateOnNaN()` stops training at the first.",
            RuntimeWarning,
            stacklevel=2,
        )


def _batch_size(x: Any) -> tf.Tensor:
    return tf.shape(keras.tree.flatten(x)[0])[0]


def _sum(value: tf.Tensor, others: list[tf.Tensor]) -> tf.Tensor:
    return tf.add_n([value, *(tf.cast(other, value.dtype) for other in others)])


def _estimate_latent(latent: Latent, f_b: tf.Tensor, cost: Any) -> Estimate:
    """The estimate of one call of a layer; of several samples the hard pass has the first."""
    estimator, seed = latent.layer.estimator, latent.layer.next_seed()
    if estimator.num_samples == 1:
        draw = Draw(latent.sample, latent.z)
        return estimator.estimate_at(
            latent.dist, draw, latent.sample, f_b, cost, latent.context, seed
        )
    draw = estimator.complete_draw(latent.dist.detached(), latent.eps, seed)
    values = tf.concat([tf.stop_gradient(f_b)[tf.newaxis], cost(draw.b[1:])], 0)
    estimate = estimator.estimate_at(latent.dist, draw, draw.b, values, cost, latent.context, seed)
    # The model's parameters learn from the hard pass.
    direct = batch_mean(f_b)
    return estimate._replace(surrogate=estimate.surrogate + direct - tf.stop_gradient(direct))


def _pathwise_estimates(
    tape: tf.GradientTape, objective: tf.Tensor, latents: dict[str, Latent], f_b: tf.Tensor
) -> dict[str, Estimate]:
    """The estimates of layers whose gradient is ordinary backpropagation through their sample.

    Theirs is the gradient of the mean cost, estimates of the layers below and above included.
    """
    pathwise = {k: v for k, v in latents.items() if not v.layer.estimator.needs_cost}
    gradients = tape.gradient(objective, [latent.z for latent in pathwise.values()])
    examples = tf.cast(tf.size(f_b), f_b.dtype)
    estimates = {}
    for (name, latent), df_dz in zip(pathwise.items(), gradients, strict=True):
        df_dz = None if df_dz is None else examples * df_dz
        gradient = latent.layer.estimator.estimate_on_path(latent.dist, latent.z, f_b, df_dz)
        estimate = package(latent.dist, latent.sample, f_b, gradient)
        # Here f(b) itself leads backpropagation through the sample.
        estimates[name] = estimate._replace(surrogate=batch_mean(f_b))
    return estimates


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
