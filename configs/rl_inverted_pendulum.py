"""InvertedPendulum (section 6.4): continuous actions, `lax` or `a2c`.

    python -m examples.rl --config=configs/rl_inverted_pendulum.py --workdir=DIR --config.method=lax

Its episodes are up to 1 000 steps long: the variance is measured less often and on fewer rollouts
than in CartPole. Expected: above 950 after about 300 episodes with either method, half a minute.
See examples/results/rl.md.
"""

from configs import rl


def get_config():
    config = rl.get_config()
    config.environment = "InvertedPendulum-v5"
    config.method = "lax"
    config.policy_units = (64, 64)
    config.policy_activation = "tanh"
    config.control_variate_units = (64, 64)
    config.control_variate_activation = "elu"
    config.learning_rate = 3e-3
    config.control_variate_learning_rate = 1e-2
    config.thresholds = (950.0,)
    config.variance_every = 50
    config.variance_rollouts = 20
    return config
