"""A few steps on the 8x8 digits, to see in seconds that everything runs (CI does).

    python -m examples.vae --config=configs/vae_smoke.py --workdir=/tmp/vae_smoke

Expected: a validation ELBO that rises by 2 nats or more from about -31.
"""

from configs import vae_digits


def get_config():
    config = vae_digits.get_config()
    config.steps = 600
    config.log_every = 200
    config.jit_compile = False
    config.iwae_samples = 10
    config.steps_per_execution = 10
    return config
