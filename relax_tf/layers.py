"""Stochastic layers: `theta = x W + beta`, a sample of `p(b|theta)` out, gradients by estimators.

A stochastic layer drops into any Keras model; `relax_tf.RelaxModel` trains it. In evaluation and
prediction it samples (or emits its mean). In training its estimator decides what it emits and
how the gradient comes back to theta.
"""

import weakref
from typing import Any

import keras
import tensorflow as tf

from relax_tf import estimators
from relax_tf.distributions import Bernoulli, Distribution
from relax_tf.distributions.bernoulli import check_support
from relax_tf.distributions.noise import fold_in, make_seed
from relax_tf.estimators.estimate import batch_mean
from relax_tf.passes import active_pass
from relax_tf.validation import one_of, positive_integer


class StochasticLayer(keras.layers.Layer):
    """Base of the stochastic layers. A subclass says what distribution its inputs parametrise.

    Args:
        estimator: an id such as `"relaxed_rebar"`, a config or an `Estimator`.
        prior: None, `"uniform"` or `"learned"`; with a prior the layer adds its KL to the cost.
        kl: `"analytic"`, or `"sampled"` for the log-ratio at the sample, as in the paper.
        inference: `"sample"` or `"mean"`: what the layer emits outside training.
        seed: an integer for the layer's noise; by default Keras's own choice, which
            `keras.utils.set_random_seed` governs.
    """

    def __init__(
        self,
        estimator: str | dict[str, Any] | estimators.Estimator,
        prior: str | None = None,
        kl: str = "analytic",
        inference: str = "sample",
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.estimator = estimators.get(estimator)
        self.prior = one_of(prior, [None, "uniform", "learned"], "prior")
        self.kl = one_of(kl, ["analytic", "sampled"], "kl")
        self.inference = one_of(inference, ["sample", "mean"], "inference")
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.tracked = _Tracked(self.name)

    # What a subclass defines.

    def distribution(self, inputs: tf.Tensor) -> Distribution:
        """`p(b|theta)` for these inputs."""
        raise NotImplementedError

    def prior_distribution(self, event_rank: int = 1) -> Distribution:
        """The prior over one event, with a batch axis (and further event axes) of size 1."""
        raise NotImplementedError

    def build_estimator(self, theta_shape: tuple, input_shape: tuple) -> None:
        """Creates the estimator's variables; a subclass calls it at the end of `build`."""
        owner = getattr(self.estimator, "owner", lambda: None)()
        if owner not in (None, self):
            raise ValueError(
                f"layer {self.name!r} was given the estimator instance of layer {owner.name!r}. "
                "Each layer learns a control variate of its own: pass an id, a config or a new "
                "instance."
            )
        self.estimator.owner = weakref.ref(self)
        if not self.estimator.built:
            self.estimator.build(tuple(theta_shape), tuple(input_shape))
        if self.estimator.trainable_variables:
            self.tracked.add("control_variate_norm")

    # What a pass asks.

    def call(self, inputs, training=None, mask=None):
        if mask is not None and self.prior is not None:
            raise ValueError(
                f"layer {self.name!r} received a mask, but its KL would count masked steps too. "
                "Use prior=None and add a masked KL in `compute_cost`."
            )
        dist = self.distribution(inputs)
        current = active_pass()
        sample = (
            self._sample_alone(dist, training)
            if current is None
            else current.emit(self, dist, inputs)
        )
        return tf.cast(sample, self.compute_dtype)

    def _sample_alone(self, dist: Distribution, training: bool | None) -> tf.Tensor:
        """The sample where no pass of a RelaxModel is active; the KL joins by `add_loss`."""
        sample = self._sample_without_pass(dist, training)
        if self.prior is not None:
            self.add_loss(batch_mean(self.kl_divergence(dist, sample)))
        return sample

    def _sample_without_pass(self, dist: Distribution, training: bool | None) -> tf.Tensor:
        if not training:
            return dist.mean() if self.inference == "mean" else dist.draw(self.next_seed()).b
        if self.estimator.needs_cost:
            raise ValueError(
                f"layer {self.name!r} was called with training=True outside of a training step "
                f"of relax_tf.RelaxModel, but its estimator {self.estimator.name!r} needs the "
                "cost of its sample. Use a relax_tf.RelaxModel with `fit` or `estimate`, call "
                "with training=False, or choose an estimator that backpropagates through its "
                "own sample ('concrete', 'straight_through')."
            )
        return self.estimator.emit(dist, dist.draw(self.next_seed()))

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

    # Keras.

    def save_own_variables(self, store):
        super().save_own_variables(store)
        store["seed_generator_state"] = keras.ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store):
        own = {key: store[key] for key in store.keys()}  # noqa: SIM118 (an HDF5 group)
        state = own.pop("seed_generator_state")
        super().load_own_variables(own)
        self.seed_generator.state.assign(state[()])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "estimator": _without_shapes(estimators.serialize(self.estimator)),
            "prior": self.prior,
            "kl": self.kl,
            "inference": self.inference,
            "seed": self.seed,
        }


def _without_shapes(config: dict[str, Any]) -> dict[str, Any]:
    """A serialised estimator that takes its shapes from the layer that builds it."""
    return {key: value for key, value in config.items() if key != "build_config"}


class _Tracked:
    """The training metrics of one layer, out of Keras's sight.

    Only a RelaxModel updates and shows them. Were they attributes of the layer, every Keras model
    that holds the layer would log zeros.
    """

    def __init__(self, layer_name: str):
        self._layer_name = layer_name
        self.metrics: dict[str, keras.metrics.Mean] = {}
        self.add("second_moment")

    def add(self, name: str) -> None:
        if name not in self.metrics:
            self.metrics[name] = keras.metrics.Mean(name=f"{self._layer_name}_{name}")

    def update(self, values: dict[str, tf.Tensor]) -> None:
        for name, metric in self.metrics.items():
            metric.update_state(values[name])


@keras.saving.register_keras_serializable("relax_tf")
class StochasticBinaryLayer(StochasticLayer):
    """Binary units: `theta = x W + beta` are logits, `b ~ Bernoulli(sigmoid(theta))`.

    Inputs `[batch, ..., features]`, outputs `[batch, ..., units]` in the layer's compute dtype.
    Trained inside `relax_tf.RelaxModel`; with `concrete` or `straight_through` in any model.

    Args:
        units: the number of binary units.
        estimator: how gradients come back through the sample: an id (`"relaxed_rebar"`,
            `"rebar"`, `"relax"`, `"reinforce"`, `"concrete"`, `"straight_through"`), a config
            or an `Estimator`.
        support: the two values that a unit emits, `(0, 1)` or `(-1, 1)` for example.
        prior: None; `"uniform"`, both values equally likely; or `"learned"`, independent units
            with trainable logits that start at 0. With a prior the layer's KL, in nats, joins
            the cost of each example.
        kl: `"analytic"` or `"sampled"` (`log p(b|theta) - log prior(b)` at the sample).
        inference: what to emit outside training, `"sample"` or `"mean"`.
        use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer: as
            in `keras.layers.Dense`.
        seed: an integer for the layer's noise.

    Raises:
        ValueError: for an unknown estimator, prior, kl or inference, `units` below 1, or a
            `support` that is not an increasing pair; when called with `training=True` outside
            of a `RelaxModel` although the estimator needs the cost.

    Example:

    >>> layer = relax_tf.StochasticBinaryLayer(3, support=(-1, 1))
    >>> sample = layer(tf.zeros([2, 5]))
    >>> bool(tf.reduce_all(tf.abs(sample) == 1))
    True

    A one-layer VAE:

    >>> inputs = keras.Input([784])
    >>> b = relax_tf.StochasticBinaryLayer(200, prior="uniform")(inputs)
    >>> outputs = keras.layers.Dense(784)(b)
    >>> vae = relax_tf.RelaxModel(inputs, outputs)
    >>> vae.compile("adam", loss=relax_tf.losses.BernoulliNegativeLogLikelihood())
    """

    def __init__(
        self,
        units: int,
        estimator: str | dict[str, Any] | estimators.Estimator = "relaxed_rebar",
        support: tuple[float, float] = (0, 1),
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
        super().__init__(estimator, prior, kl, inference, seed, **kwargs)
        self.units = positive_integer(units, "units")
        self.support = check_support(support)
        self.dense = keras.layers.Dense(
            self.units,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            dtype=self.dtype_policy,
            name="logits",
        )

    @property
    def kernel(self) -> keras.Variable:
        """W, shape `[features, units]`."""
        return self.dense.kernel

    @property
    def bias(self) -> keras.Variable | None:
        """beta, shape `[units]`."""
        return self.dense.bias

    def build(self, input_shape):
        self.dense.build(input_shape)
        if self.prior is not None:
            self.prior_logits = self.add_weight(
                name="prior_logits",
                shape=(self.units,),
                initializer="zeros",
                trainable=self.prior == "learned",
            )
        self.build_estimator(self.compute_output_shape(input_shape), input_shape)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def distribution(self, inputs):
        return Bernoulli(self.dense(inputs), self.support)

    def prior_distribution(self, event_rank=1):
        logits = tf.reshape(tf.convert_to_tensor(self.prior_logits), [1] * event_rank + [-1])
        return Bernoulli(logits, self.support)

    def get_config(self) -> dict[str, Any]:
        dense = self.dense.get_config()
        shared = (
            "units",
            "use_bias",
            "kernel_initializer",
            "bias_initializer",
            "kernel_regularizer",
            "bias_regularizer",
        )
        return {
            **super().get_config(),
            **{key: dense[key] for key in shared},
            "support": self.support,
        }
