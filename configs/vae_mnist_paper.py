"""The linear one-layer VAE on MNIST with the paper's settings (Table 1): 2 000 000 steps.

    python -m examples.vae --config=configs/vae_mnist_paper.py --workdir=/tmp/vae_mnist_paper

Expected after all steps: a training ELBO of about -111.2 nats (the paper's figure).
"""

from configs import vae


def get_config():
    config = vae.get_config()
    config.steps = 2_000_000
    config.learning_rate = 1e-4
    config.beta_2 = 0.99999
    config.control_variate_learning_rate = 1e-3
    config.control_variate_weight_decay = 1e-3
    config.warmup_steps = 1_000
    config.log_every = 10_000
    return config
