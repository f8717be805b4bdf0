"""What the stochastic layers share: `x W + beta`, samples, priors, passes, saving."""

import weakref
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import global_state

from relax_tf import estimators
from relax_tf.control_variates import default_networks
from relax_tf.distributions import Distribution
from relax_tf.distributions.noise import fold_in, make_seed
from relax_tf.estimators.estimate import batch_mean
from relax_tf.layers.passes import active_pass, without_chance
from relax_tf.validation import boolean, one_of, refuse_sparse

# The settings of `x W + beta`, with their defaults.
_OF_DENSE = {
    "use_bias": True,
    "kernel_initializer": "glorot_uniform",
    "bias_initializer": "zeros",
    "kernel_regularizer": None,
    "bias_regularizer": None,
}


class StochasticLayer(keras.layers.Layer):
    """Base of the stochastic layers. A subclass says what distribution `x W + beta` parametrises.

    `layer(inputs, context=...)` shows the control variate something else than the inputs.

    Args:
        num_outputs: the size of `x W + beta`; None if the inputs themselves are theta.
        estimator: an id such as `"relaxed_rebar"`, a config or an `Estimator`.
        prior: None, the name of the class's fixed prior, or `"learned"`; with a prior the layer
            adds its KL to the cost.
        kl: `"analytic"`, or `"sampled"` for the log-ratio at the sample, as in the paper.
        inference: `"sample"`, `"mean"` or `"mode"`: what the layer emits outside training; an
            attribute that may be assigned at any time.
        use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer: as
            in `keras.layers.Dense`; not to be given if `num_outputs` is None.
        seed: an integer for the layer's noise; by default Keras's own choice, which
            `keras.utils.set_random_seed` governs.

    Attributes:
        family: the class of the layer's distributions.
        fixed_prior: the name of the prior that has nothing to learn.
        unit_rank: how many of the last axes of a sample make one unit or array of units; axes
            in front of them repeat it.
        theta_shape: of inputs that are theta, for messages.
    """

    family: type[Distribution]
    fixed_prior = "uniform"
    unit_rank = 1
    theta_shape = "[batch, ..., units]"

    def __init__(
        self,
        num_outputs: int | None,
        estimator: str | dict[str, Any] | estimators.Estimator,
        prior: str | None = None,
        kl: str = "analytic",
        inference: str = "sample",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        seed: int | None = None,
        **kwargs,
    ):
        if num_outputs is None:
            # The inputs' own precision, whatever the layer computes in: they are theta.
            kwargs = {"autocast": False, **kwargs}
        super().__init__(**kwargs)
        self.supports_masking = True
        self.estimator = estimator
        self.prior = one_of(prior, [None, self.fixed_prior, "learned"], "prior")
        self.kl = one_of(kl, ["analytic", "sampled"], "kl")
        self.inference = inference
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.tracked = _Tracked(self.name, has_kl=prior is not None)
        of_dense = {
            "use_bias": boolean(use_bias, "use_bias"),
            "kernel_initializer": kernel_initializer,
            "bias_initializer": bias_initializer,
            "kernel_regularizer": kernel_regularizer,
            "bias_regularizer": bias_regularizer,
        }
        if num_outputs is None:
            self._refuse_settings_of_dense(of_dense)
            self.dense = None
        else:
            self.dense = keras.layers.Dense(
                num_outputs, **of_dense, dtype=self.dtype_policy, name="theta"
            )

    def _refuse_settings_of_dense(self, settings: dict[str, Any]) -> None:
        for name, value in settings.items():
            if value != _OF_DENSE[name]:
                raise ValueError(
                    f"layer {self.name!r} has no kernel and no bias, because its inputs are theta: "
                    f"`{name}` belongs to the layer that computes them. Received: {name}={value!r}"
                )

    def __setattr__(self, name, value):
        # No property: Keras would save its variables under the name of what is behind it.
        if name == "estimator":
            value = self._new_estimator(value)
        super().__setattr__(name, value)

    def _new_estimator(self, identifier: Any) -> estimators.Estimator:
        """The estimator to assign, in place of the one so far."""
        if self.built:
            raise ValueError(
                f"layer {self.name!r} is built, so that its estimator's variables exist: "
                "`estimator` cannot be changed any more. Make a new layer (`layer.get_config()` "
                f"has its settings). Received: estimator={identifier!r}"
            )
        estimator = estimators.get(identifier)
        estimator.check_defined_for(self.family)
        if hasattr(self, "estimator"):
            self._tracker.untrack(self.estimator)
        return estimator

    @property
    def inference(self) -> str:
        """What the layer emits outside training; a RelaxModel heeds an assignment from then on.

        `"sample"`: a hard sample, so that the loss of `evaluate` estimates the expected cost that
        training minimises. `"mode"`: the most probable hard sample; the loss is the cost of that
        one sample, what a deployed model without chance would incur. `"mean"`: `E[b]`, as a rule
        not a value that `b` can have; the loss is the cost at the mean, which is neither the
        expected cost nor a bound of it unless the cost is linear. A KL that is `"analytic"` is the
        same under all three; a `"sampled"` one is taken at what is emitted.
        """
        return self._inference

    @inference.setter
    def inference(self, value: str) -> None:
        self._inference = one_of(value, ["sample", "mean", "mode"], "inference")

    @property
    def kernel(self) -> keras.Variable | None:
        """W, shape `[features, num_outputs]`; None where the inputs are theta."""
        return None if self.dense is None else self.dense.kernel

    @property
    def bias(self) -> keras.Variable | None:
        """beta, shape `[num_outputs]`; None without one."""
        return None if self.dense is None else self.dense.bias

    # What a subclass defines.

    def distribution(self, inputs: tf.Tensor) -> Distribution:
        """`p(b|theta)` for these inputs."""
        raise NotImplementedError

    def prior_distribution(self, event_rank: int) -> Distribution:
        """The prior, with axes of size 1 for the batch and for leading axes of the event."""
        raise NotImplementedError

    def build_prior(self, units: tuple[int, ...]) -> None:
        """Creates the prior's variables, by `add_prior_weight`, of the shape of the units."""
        raise NotImplementedError

    # Theta.

    def theta(self, inputs: Any) -> Any:
        """`x W + beta`; or the inputs where they are theta, in float32 at least."""
        if self.dense is not None:
            return self.dense(inputs)
        dtype = "float64" if self.compute_dtype == "float64" else "float32"
        return keras.tree.map_structure(
            lambda t: tf.cast(t, dtype) if tf.as_dtype(t.dtype).is_floating else t, inputs
        )

    def _default_context(self, inputs: Any, dist: Distribution) -> tf.Tensor:
        """What the control variate sees if it is shown nothing else: the inputs.

        Of inputs that are theta those that are finite, side by side if they are several.
        """
        if self.dense is not None:
            return inputs
        return tf.concat([dist.zero_where_fixed(t) for t in tf.nest.flatten(dist.theta)], -1)

    # Variables.

    def build(self, inputs_shape, context_shape=None):
        shape = tuple(self.compute_output_shape(inputs_shape))
        if self.dense is None:
            self._check_theta_shape(inputs_shape, shape)
        elif not self.dense.built:  # `for_inference` shares one
            self.dense.build(inputs_shape)
        if self.prior is not None:
            self.build_prior(shape[-self.unit_rank :])
        if context_shape is None:
            parts = len(inputs_shape) if _is_nested(inputs_shape) else 1
            context_shape = (*shape[:-1], parts * shape[-1]) if self.dense is None else inputs_shape
        self._build_estimator(shape, context_shape)

    def _check_theta_shape(self, inputs_shape: Any, shape: tuple[int | None, ...]) -> None:
        units = shape[-self.unit_rank :]
        if len(shape) <= len(units) or None in units:
            raise ValueError(
                f"layer {self.name!r} has no kernel: its inputs are theta, and must have shape "
                f"{self.theta_shape} with known {self.theta_shape.split('..., ')[1][:-1]}. "
                f"Received shape: {inputs_shape}"
            )
        axes = {-axis: size for axis, size in enumerate(reversed(units), start=1)}
        spec = keras.InputSpec(min_ndim=len(units) + 1, axes=axes)
        self.input_spec = [spec] * len(inputs_shape) if _is_nested(inputs_shape) else spec

    def add_prior_weight(self, name: str, shape: tuple[int, ...]) -> keras.Variable:
        """A parameter of the prior that starts at 0, and stays there unless it is learned."""
        return self.add_weight(
            name=name, shape=shape, initializer="zeros", trainable=self.prior == "learned"
        )

    def _build_estimator(self, theta_shape: tuple, context_shape: tuple) -> None:
        owner = getattr(self.estimator, "owner", lambda: None)()
        if owner not in (None, self):
            raise ValueError(
                f"layer {self.name!r} was given the estimator instance of layer {owner.name!r}. "
                "Each layer learns a control variate of its own: pass an id, a config or a new "
                "instance."
            )
        self.estimator.owner = weakref.ref(self)
        if not self.estimator.built:
            with default_networks(local=not self.estimator.sees_whole_maps):
                self.estimator.build(tuple(theta_shape), tuple(context_shape))
        if self.estimator.trainable_variables:
            self.tracked.add("control_variate_norm")

    def for_inference(self, inference: str) -> "StochasticLayer":
        """A layer with the same W and beta that emits samples, means or modes, and learns nothing.

        It has no control variate, no prior and a generator of its own.
        """
        settings = {"estimator": "reinforce", "prior": None, "inference": inference}
        layer = type(self).from_config({**self.get_config(), **settings})
        if self.dense is not None:
            layer._tracker.untrack(layer.dense)
            layer.dense = self.dense
        return layer

    # What a pass asks.

    def mean(self, inputs: Any) -> Any:
        """`E[b]` given the inputs, in place of a sample: probabilities as an output of a model.

        It is no sample: no estimator takes part, no KL is added, and gradients flow through it as
        through any other operation. If the layer has a `context`, call it before its `mean`.

        Args:
            inputs: as of the layer itself: tensors, or symbols of a functional model.

        Returns:
            The shape and dtype of a sample. In the support: of `(-1, 1)` a number between the two.

        Example:

        >>> inputs = keras.Input([5])
        >>> layer = relax_tf.StochasticBinaryLayer(3)
        >>> outputs = keras.layers.Dense(2)(layer(inputs))
        >>> model = relax_tf.RelaxModel(inputs, {"y": outputs, "probabilities": layer.mean(inputs)})
        >>> model.compile("adam", loss={"y": "mse"})
        """
        return self(inputs, output="mean")

    def call(self, inputs, training=None, mask=None, context=None, output="sample"):
        """A sample of `p(b|theta)`, theta computed from `inputs`; with `output="mean"` its mean.

        `context` is what the control variate sees besides z, `[batch, ...]`, by default the
        inputs. It may hold whatever is known before this sample is drawn, such as the data and
        samples upstream; what depends on the sample would bias the estimate.
        """
        self._refuse_sparse(inputs, context)
        if output == "mean":
            return tf.cast(self.distribution(inputs).mean(), self.compute_dtype)
        if mask is None and context is not None:  # Keras fills in the masks of a sole argument
            mask = [getattr(t, "_keras_mask", None) for t in keras.tree.flatten(inputs)]
        if self.compute_mask(inputs, mask) is not None and self.prior is not None:
            raise ValueError(
                f"layer {self.name!r} received a mask, but its KL would count masked steps too. "
                "Use prior=None and add a masked KL in `compute_cost`."
            )
        dist = self.distribution(inputs)
        current = active_pass()
        sample = (
            self._sample_alone(dist, training)
            if current is None
            else current.emit(
                self, dist, self._default_context(inputs, dist) if context is None else context
            )
        )
        return tf.cast(sample, self.compute_dtype)

    def compute_output_spec(self, inputs, *args, **kwargs):
        self._refuse_sparse(inputs, kwargs.get("context"))
        return super().compute_output_spec(inputs, *args, **kwargs)

    def compute_mask(self, inputs, previous_mask):
        """The mask of the input; where that is `[loc, scale]`, of the first that has one."""
        masks = [mask for mask in keras.tree.flatten(previous_mask) if mask is not None]
        return masks[0] if masks else None

    def _refuse_sparse(self, inputs: Any, context: Any) -> None:
        for value in keras.tree.flatten(inputs):
            refuse_sparse(value, f"the input of layer {self.name!r}")
        refuse_sparse(context, f"the context of layer {self.name!r}")

    def _sample_alone(self, dist: Distribution, training: bool | None) -> tf.Tensor:
        """The sample where no pass of a RelaxModel is active; the KL joins by `add_loss`."""
        sample = self._sample_without_pass(dist, training)
        if self.prior is not None:
            self.add_loss(batch_mean(self.kl_divergence(dist, sample)))
        return sample

    def _sample_without_pass(self, dist: Distribution, training: bool | None) -> tf.Tensor:
        if not training:
            if self.inference != "sample":
                return without_chance(dist, self.inference)
            return dist.draw(self._seed_alone()).b
        if self.estimator.needs_cost:
            raise ValueError(
                f"layer {self.name!r} was called with training=True outside of a training step "
                f"of relax_tf.RelaxModel, but its estimator {self.estimator.id!r} needs the "
                "cost of its sample. Use a relax_tf.RelaxModel with `fit` or `estimate`, call "
                "with training=False, or choose an estimator that backpropagates through its "
                "own sample ('concrete', 'straight_through', 'reinmax'; 'reparameterization' "
                "where the sample is continuous)."
            )
        return self.estimator.emit(dist, dist.draw(self._seed_alone()))

    def kl_divergence(self, dist: Distribution, sample: tf.Tensor) -> tf.Tensor | None:
        """`KL(p(b|theta) || prior)`, `[batch]`, exact or at the sample; None without a prior."""
        if self.prior is None:
            return None
        prior = self.prior_distribution(event_rank=dist.shape.rank - 1)
        if self.kl == "analytic":
            return dist.kl_divergence(prior)
        return dist.log_prob(sample) - prior.log_prob(sample)

    def next_seed(self) -> tf.Tensor:
        """A fresh stateless seed, another one on every replica of a distributed step."""
        seed = make_seed(self.seed_generator)
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            seed = fold_in(seed, replica.replica_id_in_sync_group)
        return seed

    def _seed_alone(self) -> tf.Tensor:
        """`next_seed` where no pass numbers the calls: differs between layers of one seed."""
        position = _position_in_call(self)
        return fold_in(self.next_seed(), position) if position else self.next_seed()

    # Keras.

    def set_weights(self, weights: list[Any]) -> None:
        """As in any Keras layer; or `[kernel, bias]` alone, `get_weights()` of a `Dense`.

        Args:
            weights: arrays, for all weights of the layer or for W and beta.
        """
        of_dense = [] if self.dense is None else self.dense.weights
        only_dense = 0 < len(weights) == len(of_dense) < len(self.weights)
        (self.dense if only_dense else super()).set_weights(weights)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        store["seed_generator_state"] = keras.ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store):
        own = {key: store[key] for key in store.keys()}  # noqa: SIM118 (an HDF5 group)
        if "seed_generator_state" not in own:
            raise ValueError(
                f"the file has no state for layer {self.name!r}: it comes from another model, or "
                "the layer is not built yet (call the model on a batch first)."
            )
        state = own.pop("seed_generator_state")
        super().load_own_variables(own)
        self.seed_generator.state.assign(state[()])

    def get_config(self) -> dict[str, Any]:
        dense = {} if self.dense is None else self.dense.get_config()
        return {
            **super().get_config(),
            **{key: dense[key] for key in _OF_DENSE if key in dense},
            "estimator": _without_shapes(estimators.serialize(self.estimator)),
            "prior": self.prior,
            "kl": self.kl,
            "inference": self.inference,
            "seed": self.seed,
        }


def as_event(weight: keras.Variable, event_rank: int) -> tf.Tensor:
    """A prior's parameter with leading axes of size 1, for the batch and the rest of the event."""
    missing = 1 + event_rank - len(weight.shape)
    return tf.reshape(tf.convert_to_tensor(weight), [1] * missing + list(weight.shape))


def _is_nested(shape: Any) -> bool:
    """Whether it is the shapes of a list of inputs; files have lists for tuples."""
    return isinstance(shape[0], list | tuple)


def _position_in_call(layer: StochasticLayer) -> int:
    """How many other stochastic layers the outermost Keras call met before this one.

    By the order of calls, not by names: a model that is built again numbers its layers alike.
    """
    call = global_state.get_global_attribute("current_call_ctx")
    if call is None:  # `layer.call` by itself
        return 0
    seen = call.get_value("relax_tf_layers", [])
    if layer not in seen:
        seen.append(layer)
    call.set_value("relax_tf_layers", seen)
    return seen.index(layer)


def _without_shapes(config: dict[str, Any]) -> dict[str, Any]:
    """A serialised estimator that takes its shapes from the layer that builds it."""
    return {key: value for key, value in config.items() if key != "build_config"}


class _Tracked:
    """The training metrics of one layer, out of Keras's sight.

    Only a RelaxModel updates and shows them. Were they attributes of the layer, every Keras model
    that holds the layer would log zeros.
    """

    def __init__(self, layer_name: str, has_kl: bool):
        self._layer_name = layer_name
        self.metrics: dict[str, keras.metrics.Mean] = {}
        self.add("second_moment")
        if has_kl:
            self.add("kl")

    def add(self, name: str) -> None:
        if name not in self.metrics:
            self.metrics[name] = keras.metrics.Mean(name=f"{self._layer_name}_{name}")

    def update(
        self, values: dict[str, tf.Tensor], examples: tf.Tensor, learned: tf.Tensor | None = None
    ) -> None:
        """Takes in a step's values; the norm only if the control variate `learned` (None: yes)."""
        for name in values.keys() & self.metrics.keys():
            metric = self.metrics[name]
            weight = tf.cast(examples, metric.dtype)
            if learned is not None and name == "control_variate_norm":
                weight *= tf.cast(learned, metric.dtype)
            metric.update_state(values[name], sample_weight=weight)
