"""CartPole (section 6.3): discrete actions, `relax` or `a2c`.

    python -m examples.rl --config=configs/rl_cartpole.py --workdir=/tmp/rl --config.method=relax

Expected: see examples/results/rl.md.
"""

from configs import rl


def get_config():
    return rl.get_config()
