"""CartPole (section 6.3): discrete actions, `relax` or `a2c`.

    python -m examples.rl --config=configs/rl_cartpole.py --workdir=/tmp/rl --config.method=relax

Expected: above 195 after about 150 episodes with either method, above 475 after 350 to 550; half a
minute to a minute. See examples/results/rl.md.
"""

from configs import rl


def get_config():
    return rl.get_config()
