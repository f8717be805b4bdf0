"""The variance of estimators late in training: linear1 on MNIST after 600 000 steps of `flip`.

python -m examples.variance --config=configs/variance_mnist.py --workdir=/tmp/variance_mnist

trains the model first, a quarter of an hour to half of one on one core; `--config.steps` for an
earlier one. `--config=configs/variance_mnist.py:relaxed_disarm,disarm` compares these alone.
`flip` is also compared without its curvature.
"""

import ml_collections

from configs import vae_table1

ALL = ("flip", "midpoint", "relaxed_rebar", "rebar", "relaxed_disarm", "disarm", "relax")


def get_config(names=""):
    config = vae_table1.get_config("mnist-linear1-flip")
    config.steps = 600_000
    config.adapt_steps = 10_000  # of each control variate, on the frozen model
    config.variance_batch = 100  # images
    config.variance_draws = 300
    config.compared = ml_collections.ConfigDict()
    chosen = names.split(",") if names else ALL
    for name in chosen:
        config.compared[name] = {"id": name}
    if "flip" in chosen:
        config.compared["flip, no curvature"] = {"id": "flip", "curvature": False}
    return config
