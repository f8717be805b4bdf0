"""The linear one-layer VAE of the paper on MNIST, at a learning rate for short runs.

    python -m examples.vae --config=configs/vae_mnist.py --workdir=/tmp/vae_mnist

Expected: a training ELBO (mean of the last 5 000 steps) of about -120.6 nats after 100 000 steps.
"""

from configs import vae


def get_config():
    return vae.get_config()
