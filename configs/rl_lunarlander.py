"""LunarLander (section 6.3): discrete actions, `relax` or `a2c`.

    python -m examples.rl --config=configs/rl_lunarlander.py --workdir=DIR --config.method=relax

Its steps are dear and an episode has hundreds: the variance is measured less often and on fewer
rollouts than in CartPole. Expected: see examples/results/rl.md.
"""

from configs import rl


def get_config():
    config = rl.get_config()
    config.environment = "LunarLander-v3"
    config.thresholds = (200.0,)
    config.learning_rate = 3e-3
    config.episodes = 3_000
    config.variance_every = 100
    config.variance_rollouts = 20
    return config
