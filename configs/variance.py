"""The variance of every unbiased estimator on one frozen VAE on digits; about three minutes.

python -m examples.variance --config=configs/variance.py --workdir=/tmp/variance
"""

from configs import vae_digits


def get_config():
    config = vae_digits.get_config()
    config.estimator = "rebar"  # trains the model that is then frozen
    config.steps = 10_000
    config.adapt_steps = 10_000  # of each control variate, on the frozen model
    config.variance_batch = 100  # images
    config.variance_draws = 1_000
    config.compared = {
        "reinforce": {"id": "reinforce"},
        "reinforce, baseline": {"id": "reinforce", "baseline_decay": 0.9},
        "nvil": {"id": "nvil"},
        "relax": {"id": "relax"},
        "rloo, K = 2": {"id": "rloo", "num_samples": 2},
        "arm": {"id": "arm"},
        "disarm": {"id": "disarm"},
        "muprop": {"id": "muprop"},
        "rebar": {"id": "rebar"},
        "relaxed_rebar": {"id": "relaxed_rebar"},
        "rebar, independent": {"id": "rebar", "coupled": False},
        "relaxed_rebar, independent": {"id": "relaxed_rebar", "coupled": False},
    }
    return config
