"""The agents of the reinforcement-learning example: networks, estimators, one compiled update.

| method      | actions    | estimator                                                      |
|-------------|------------|----------------------------------------------------------------|
| `reinforce` | any        | score function times the return                                |
| `a2c`       | any        | score function times `R_t - V(s_t)`                            |
| `relax`     | discrete   | `c(z_t, s_t) = V(s_t) + c_hat(z_t, s_t)`                       |
| `lax`       | continuous | `c(a_t, s_t) = V(s_t) + c_hat(a_t, s_t)`                       |

V learns by squared error from the returns, `c_hat` from the variance of the gradient.

An agent has them all. Its policy follows one, the others look on: they learn from the same
episodes, so that variances can be compared at the same policy on the same rollouts.
"""

from typing import Any

import keras
import ml_collections
import numpy as np
import tensorflow as tf

import relax_tf
from relax_tf.policy_gradients import episode_second_moment, policy_gradient, returns_to_go

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
class Agent(keras.Model):
    """A policy and estimators of its gradient.

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
        self.estimators = self._estimators(actions)
        for estimator in self.estimators.values():
            estimator.build((None, actions), (None, states))
        if config.method not in self.estimators:
            raise ValueError(
                f"`config.method` must be one of {tuple(self.estimators)} in "
                f"{config.environment}. Received: {config.method!r}"
            )
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

    def _estimators(self, actions: int) -> dict[str, relax_tf.estimators.Estimator]:
        units = tuple(self.config.control_variate_units)
        activation = self.config.control_variate_activation

        def network():
            return scalar_network(units, activation)

        # c(a, s) = V(s) + c_hat(a, s): both estimators fit V, their baseline, to the returns.
        own = relax_tf.estimators.Relax if self.discrete else relax_tf.estimators.Lax
        return {
            "reinforce": relax_tf.estimators.Reinforce(),
            "a2c": relax_tf.estimators.Nvil(baseline=network(), decay=None),
            own.__name__.lower(): own(control_variate=network(), baseline=network()),
        }

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

    def _estimates(self, state, z, reward) -> tuple[Any, dict[str, relax_tf.estimators.Estimate]]:
        """The policy's distributions at an episode's states, and each estimator's estimate."""
        dist = self.policy(state)
        returns = returns_to_go(reward, self.config.discount)
        action = dist.harden(z)
        signals = {}
        if self.config.signal == "episode":
            objective = episode_second_moment(self.policy, state, self.policy_variables)
            signals = {name: {"objective": objective} for name in ("relax", "lax")}
        return dist, {
            name: policy_gradient(
                estimator, dist, action, state, returns, z=z, **signals.get(name, {})
            )
            for name, estimator in self.estimators.items()
        }

    def _update(self, state, z, reward):
        """One step on one episode: the policy's return and entropy, and the estimators' losses."""
        with tf.GradientTape() as tape:
            dist, estimates = self._estimates(state, z, reward)
            loss = estimates[self.config.method].surrogate
            loss -= self.config.entropy_bonus * tf.reduce_mean(dist.entropy())
            loss += tf.add_n([estimate.control_variate_loss for estimate in estimates.values()])
        variables = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    def _gradients(self, state, z, reward):
        """The policy gradient of an episode by each estimator, `[estimators, parameters]`.

        As the update has it, the mean over the steps, but without the entropy bonus. Nothing
        learns: in the scope the estimators' moving averages stay where they are.
        """
        with tf.GradientTape(persistent=True) as tape, keras.StatelessScope():
            _, estimates = self._estimates(state, z, reward)
        rows = [tape.gradient(e.surrogate, self.policy_variables) for e in estimates.values()]
        return tf.stack([tf.concat([tf.reshape(g, [-1]) for g in row], 0) for row in rows])
