"""The linear one-layer VAE on Omniglot, 28x28, at a learning rate for short runs.

    python -m examples.vae --config=configs/vae_omniglot.py --workdir=/tmp/vae_omniglot

The full data are trained on TFDS's `train` and validated on `test`. Where only the official small
splits are at hand: `--config.splits="('small1','small2')"`.
"""

from configs import vae


def get_config():
    config = vae.get_config()
    config.dataset = "omniglot"
    return config
