"""What the stochastic layers share: `x W + beta`, samples, priors, passes, saving."""

import weakref
from typing import Any

import keras
import tensorflow as tf

from relax_tf import estimators
from relax_tf.control_variates import default_networks
from relax_tf.distributions import Distribution
from relax_tf.distributions.noise import fold_in, make_seed
from relax_tf.estimators.arguments import checked_context
from relax_tf.keras_internals import mask_of, untrack
from relax_tf.layers.alone import sample_alone
from relax_tf.layers.passes import active_pass, without_chance
from relax_tf.layers.prior import PriorLayer
from relax_tf.layers.theta import ThetaLayer, is_nested
from relax_tf.layers.tracked import Tracked
from relax_tf.validation import boolean, one_of

_OUTPUTS = ["sample", "mean"]


class StochasticLayer(PriorLayer, ThetaLayer):
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
    """

    family: type[Distribution]
    only_predicts = False  # a copy that `for_inference` made

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
        self.prior = prior
        self.kl = kl
        self.inference = inference
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.tracked = Tracked(self.name)
        self._make_dense(
            num_outputs,
            use_bias=boolean(use_bias, "use_bias"),
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
        )

    def __setattr__(self, name, value):
        # No property: Keras would save its variables under the name of what is behind it.
        if name == "estimator":
            value = self._new_estimator(value)
        elif name == "prior":
            value = self._new_prior(value)
        elif name == "kl":
            value = one_of(value, ["analytic", "sampled"], "kl")
        super().__setattr__(name, value)

    @property
    def _assigned(self) -> tuple:
        """What a step is traced with and may be assigned at any time."""
        return self.kl, self.only_predicts and self.inference

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
            untrack(self, self.estimator)
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

    # What a subclass defines.

    def distribution(self, inputs: tf.Tensor) -> Distribution:
        """`p(b|theta)` for these inputs."""
        raise NotImplementedError

    # Variables.

    def build(self, inputs_shape, context_shape=None):
        shape = tuple(self.compute_output_shape(inputs_shape))
        if self.dense is None:
            self._check_theta_shape(inputs_shape, shape)
        else:
            self._build_dense(inputs_shape)
        if self.prior is not None:
            self.build_prior(shape[-self.unit_rank :])
            self.tracked.add("kl")
        if context_shape is None:
            parts = len(inputs_shape) if is_nested(inputs_shape) else 1
            context_shape = (*shape[:-1], parts * shape[-1]) if self.dense is None else inputs_shape
        self._build_estimator(shape, context_shape)

    def _build_estimator(self, theta_shape: tuple, context_shape: tuple) -> None:
        owner = getattr(self.estimator, "owner", lambda: None)()
        if owner not in (None, self):
            raise ValueError(
                f"layer {self.name!r} was given the estimator instance of layer {owner.name!r}. "
                "Each layer learns a control variate of its own: pass an id, a config or a new "
                "instance."
            )
        self.estimator.owner = weakref.ref(self)
        self.estimator.trainable &= self.trainable  # of a layer that was frozen before
        with default_networks(local=not self.estimator.sees_whole_maps):
            self.estimator.ensure_built(theta_shape, context_shape)
        if self.estimator.trainable_variables:
            self.tracked.add("control_variate_norm")

    def for_inference(self, inference: str) -> "StochasticLayer":
        """A layer with the same W and beta that emits samples, means or modes, and learns nothing.

        It has no control variate, no prior and a generator of its own.
        """
        settings = {"estimator": "reinforce", "prior": None, "inference": inference}
        layer = type(self).from_config({**self.get_config(), **settings, "only_predicts": True})
        if self.dense is not None:
            untrack(layer, layer.dense)
            layer.dense = self.dense
        return layer

    @property
    def _predicts_alone(self) -> bool:
        """Whether it has no part in passes, as in a teacher."""
        return self.only_predicts and self.inference != "sample"

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
        if one_of(output, _OUTPUTS, "output") == "mean":
            return tf.cast(self.distribution(inputs).mean(), self.compute_dtype)
        self._refuse_mask_of_kl(inputs, mask, context)
        dist = self.distribution(inputs)
        self.estimator.check_defined_for(type(dist))  # whatever `family` says
        if context is None:
            context = self._default_context(inputs, dist)
        else:
            context = checked_context(dist, context)
        current = active_pass()
        if current is None:
            return tf.cast(sample_alone(self, dist, training), self.compute_dtype)
        if self._predicts_alone:
            return tf.cast(without_chance(dist, self.inference), self.compute_dtype)
        return tf.cast(current.emit(self, dist, context), self.compute_dtype)

    def compute_output_spec(self, inputs, *args, **kwargs):
        context = kwargs.get("context")
        self._refuse_sparse(inputs, context)
        if one_of(kwargs.get("output", "sample"), _OUTPUTS, "output") != "mean":
            self._refuse_mask_of_kl(inputs, kwargs.get("mask"), context)
        return super().compute_output_spec(inputs, *args, **kwargs)

    def _refuse_mask_of_kl(self, inputs: Any, mask: Any, context: Any) -> None:
        if mask is None and context is not None:  # Keras fills in the masks of a sole argument
            mask = [mask_of(t) for t in keras.tree.flatten(inputs)]
        if self.compute_mask(inputs, mask) is not None and self.prior is not None:
            raise ValueError(
                f"layer {self.name!r} received a mask, but its KL would count masked steps too. "
                "Use prior=None and add a masked KL in `compute_cost`."
            )

    def compute_mask(self, inputs, previous_mask):
        """The mask of the input; where that is `[loc, scale]`, of the first that has one."""
        masks = [mask for mask in keras.tree.flatten(previous_mask) if mask is not None]
        return masks[0] if masks else None

    def next_seed(self) -> tf.Tensor:
        """A fresh stateless seed, another one on every replica of a distributed step."""
        seed = make_seed(self.seed_generator)
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            seed = fold_in(seed, replica.replica_id_in_sync_group)
        return seed

    # Keras.

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

    @classmethod
    def from_config(cls, config):
        layer = super().from_config({k: v for k, v in config.items() if k != "only_predicts"})
        layer.only_predicts = config.get("only_predicts", False)
        return layer

    def get_config(self) -> dict[str, Any]:
        estimator = estimators.serialize(self.estimator)
        estimator.pop("build_config", None)  # it takes its shapes from the layer that builds it
        return {
            **super().get_config(),
            **({"only_predicts": True} if self.only_predicts else {}),
            "estimator": estimator,
            "prior": self.prior,
            "kl": self.kl,
            "inference": self.inference,
            "seed": self.seed,
        }
