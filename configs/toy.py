"""The toy problem of section 6.1: `min E[(b - t)^2]` over one Bernoulli, one sample per step.

    python -m examples.toy --config=configs/toy.py --workdir=/tmp/toy

and with `--config.target=0.45` the easier problem of the REBAR paper. Expected at t = 0.499: the
median of RELAX's loss over the seeds is at most 0.2492 (the optimum is 0.2490), while REINFORCE's
stays at 0.2495 or above; a few minutes.
"""

import ml_collections


def get_config():
    config = ml_collections.ConfigDict()
    config.target = 0.499
    config.estimators = ("reinforce", "rebar", "relax", "relaxed_disarm", "flip")
    config.seeds = 50
    config.first_seed = 0
    config.steps = 10_000
    config.learning_rate = 0.01
    config.control_variate_learning_rate = 0.01
    config.hidden_units = (10,)  # of RELAX's control variate
    config.variance_draws = 10_000  # at a frozen theta, for the variance of the gradient
    config.log_every = 500
    config.jit_compile = True
    config.verbose = 1
    return config
