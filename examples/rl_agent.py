"""The agents of the reinforcement-learning example: networks, estimator, and one compiled update.

| method  | actions    | estimator                                                          |
|---------|------------|--------------------------------------------------------------------|
| `a2c`   | any        | score function, `R_t - V(s_t)`; V learns by squared error          |
| `relax` | discrete   | `c(z_t, s_t)`, a network that learns from the gradient's variance  |
| `lax`   | continuous | `c(a_t, s_t) = V(s_t) + c_hat(a_t, s_t)`, likewise                 |
"""

from typing import Any

import keras
import ml_collections
import numpy as np
import tensorflow as tf

import relax_tf
from relax_tf.policy_gradients import episode_second_moment, policy_gradient, returns_to_go

METHODS = {"discrete": ("a2c", "relax"), "continuous": ("a2c", "lax")}
SIGNALS = ("step", "episode")


def dense_layers(units: tuple[int, ...], activation: str) -> list[keras.layers.Layer]:
    initializer = "he_normal" if activation == "relu" else "glorot_normal"
    return [keras.layers.Dense(n, activation, kernel_initializer=initializer) for n in units]


def scalar_network(units: tuple[int, ...], activation: str) -> keras.Sequential:
    """From features to one number, which is 0 at the start."""
    return keras.Sequential(
        [*dense_layers(units, activation), keras.layers.Dense(1, kernel_initializer="zeros")]
    )


@keras.saving.register_keras_serializable("relax_tf_examples")
class ValueAndAction(keras.layers.Layer):
    """`c(a, s) = V(s) + c_hat(a, s)` of the features `[a, s]`."""

    def __init__(self, actions: int, units: tuple[int, ...], activation: str, **kwargs):
        super().__init__(**kwargs)
        self.actions = actions
        self.value = scalar_network(units, activation)
        self.c_hat = scalar_network(units, activation)

    def build(self, input_shape):
        self.value.build((None, input_shape[-1] - self.actions))
        self.c_hat.build(input_shape)
        self.built = True

    def call(self, inputs):
        return self.value(inputs[:, self.actions :]) + self.c_hat(inputs)


@keras.saving.register_keras_serializable("relax_tf_examples")
class Agent(keras.Model):
    """A policy and an estimator of its gradient.

    Args:
        config: see `configs/rl.py`.
        states: size of a state.
        actions: number of discrete actions, or size of a continuous one.
        discrete: whether actions are discrete.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, states: int, actions: int, discrete: bool
    ):
        super().__init__(name="agent")
        methods = METHODS["discrete" if discrete else "continuous"]
        if config.method not in methods:
            raise ValueError(
                f"`config.method` must be one of {methods} in {config.environment}. "
                f"Received: {config.method!r}"
            )
        if config.signal not in SIGNALS:
            raise ValueError(
                f"`config.signal` must be one of {SIGNALS}. Received: {config.signal!r}"
            )
        self.config, self.discrete = config, discrete
        self._sizes = {"states": states, "actions": actions, "discrete": discrete}
        self.network = keras.Sequential(
            [
                keras.Input([states]),
                *dense_layers(config.policy_units, config.policy_activation),
                keras.layers.Dense(actions, kernel_initializer="zeros"),
            ]
        )
        if not discrete:
            self.log_scale = self.add_weight(name="log_scale", shape=[actions], initializer="zeros")
        self.estimator = self._estimator(actions)
        self.estimator.build((None, actions), (None, states))
        self.built = True
        self.compile(
            relax_tf.RelaxOptimizer(
                keras.optimizers.RMSprop(config.learning_rate),
                keras.optimizers.RMSprop(config.control_variate_learning_rate),
            )
        )
        self.update = tf.function(
            self._update,
            input_signature=[
                tf.TensorSpec([None, states]),
                tf.TensorSpec([None, actions]),
                tf.TensorSpec([None]),
            ],
            autograph=False,
        )
        self.gradients = tf.function(
            self._gradients, input_signature=self.update.input_signature, autograph=False
        )

    def get_config(self):
        return {"config": self.config.to_dict(), **self._sizes}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "config": ml_collections.ConfigDict(config["config"])})

    def _estimator(self, actions: int) -> relax_tf.estimators.Estimator:
        units = tuple(self.config.control_variate_units)
        activation = self.config.control_variate_activation
        if self.config.method == "a2c":
            value = scalar_network(units, activation)
            return relax_tf.estimators.Nvil(baseline=value, decay=None)
        if self.config.method == "relax":
            network = scalar_network(units, activation)
            return relax_tf.estimators.Relax(control_variate=network)
        return relax_tf.estimators.Lax(control_variate=ValueAndAction(actions, units, activation))

    @property
    def policy_variables(self) -> list[keras.Variable]:
        scale = [] if self.discrete else [self.log_scale]
        return [*self.network.trainable_variables, *scale]

    def policy(self, state: tf.Tensor) -> Any:
        """The distribution of actions in the states `[time, states]`: log pi, or mean and scale."""
        outputs = self.network(state)
        if self.discrete:
            return relax_tf.distributions.OneHotCategorical(tf.nn.log_softmax(outputs))
        scale = tf.broadcast_to(tf.exp(tf.convert_to_tensor(self.log_scale)), tf.shape(outputs))
        return relax_tf.distributions.Normal(outputs, scale)

    def numpy_weights(self) -> list[np.ndarray]:
        """Of the network in the order of its layers, kernel and bias; then the scale if any."""
        weights = [np.asarray(w) for w in self.network.get_weights()]
        return weights if self.discrete else [*weights, np.exp(np.asarray(self.log_scale))]

    def _estimate(self, dist, state, z, reward, estimator):
        returns = returns_to_go(reward, self.config.discount)
        arguments = {}
        if self.config.signal == "episode" and estimator is self.estimator:
            arguments["objective"] = episode_second_moment(
                self.policy, state, self.policy_variables
            )
        return policy_gradient(estimator, dist, dist.harden(z), state, returns, z=z, **arguments)

    def _update(self, state, z, reward):
        """One step on one episode: the policy's return and entropy, and the estimator's loss."""
        with tf.GradientTape() as tape:
            dist = self.policy(state)
            estimate = self._estimate(dist, state, z, reward, self.estimator)
            loss = estimate.surrogate + estimate.control_variate_loss
            loss -= self.config.entropy_bonus * tf.reduce_mean(entropy(dist))
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    def _gradients(self, state, z, reward):
        """The policy gradient of an episode by this agent's estimator, and by REINFORCE: `[2, n]`.

        Without the entropy bonus; as the update has it, the mean over the steps.
        """
        with tf.GradientTape(persistent=True) as tape:
            dist = self.policy(state)
            surrogates = [
                self._estimate(dist, state, z, reward, estimator).surrogate
                for estimator in (self.estimator, relax_tf.estimators.Reinforce())
            ]
        return tf.stack(
            [
                tf.concat([tf.reshape(g, [-1]) for g in tape.gradient(s, self.policy_variables)], 0)
                for s in surrogates
            ]
        )


def entropy(dist: Any) -> tf.Tensor:
    """In nats, `[time]`, up to a constant for normal actions."""
    if dist.discrete:
        return -tf.reduce_sum(tf.exp(dist.theta) * dist.theta, -1)  # theta = log pi
    return tf.reduce_sum(tf.math.log(dist.scale), -1)
