"""The digits VAE, each batch shared out among the machines of a cluster.

    python -m examples.distributed --config=configs/distributed.py --workdir=DIR

On one machine it takes about a minute and prints the commands for several.
"""

from configs import vae_digits


def get_config():
    config = vae_digits.get_config()
    config.steps = 10_000
    config.batch_size = 96  # of all machines together
    config.jit_compile = False  # Keras does not compile steps on several replicas
    return config
