"""The fields of a reinforcement-learning experiment; the other RL configs start from here."""

import ml_collections


def get_config():
    config = ml_collections.ConfigDict()
    config.environment = "CartPole-v1"
    config.method = "relax"  # "a2c", "relax" (discrete actions) or "lax" (continuous)
    # Policy.
    config.policy_units = (10, 10)
    config.policy_activation = "relu"
    config.discount = 0.99
    config.entropy_bonus = 0.01
    config.learning_rate = 1e-2
    # Control variate, or A2C's value function.
    config.control_variate_units = (10, 10)
    config.control_variate_activation = "relu"
    config.control_variate_learning_rate = 1e-2
    config.signal = "step"  # of the control variate: per "step", or the paper's "episode"
    # Length: an episode is one update.
    config.episodes = 3_000
    config.thresholds = (195.0, 475.0)  # solved: the mean of 100 episodes is above
    config.stop = True  # once the last threshold is passed
    config.seed = 0
    # Variance of the policy gradient.
    config.variance_every = 10  # episodes; 0: never
    config.variance_rollouts = 100
    # Execution.
    config.log_every = 50  # episodes between checkpoints
    config.render = False  # a GIF of an episode of the trained agent
    config.threads = 1
    config.verbose = 1
    return config
