"""A discrete VAE on scikit-learn's 8x8 digits: real data, no download, about a minute.

    python -m examples.vae --config=configs/vae_digits.py --workdir=/tmp/vae_digits

Expected: a validation ELBO of about -24.0 nats after 40 000 steps, from -30.7 at the start.
"""

from configs import vae


def get_config():
    config = vae.get_config()
    config.dataset = "digits"
    config.steps = 40_000
    config.log_every = 1_000
    config.units = 32
    config.hidden_units = (64, 64)
    return config
