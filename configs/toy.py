"""The toy problem of section 6.1: `min E[(b - t)^2]` over one Bernoulli, one sample per step.

    python -m examples.toy --config=configs/toy.py --workdir=/tmp/toy

Expected: RELAX moves to the optimum 0.249 while REINFORCE stays near 0.25; about a minute.
"""

import ml_collections


def get_config():
    config = ml_collections.ConfigDict()
    config.target = 0.499
    config.estimators = ("reinforce", "rebar", "relax")
    config.steps = 10_000
    config.learning_rate = 0.01
    config.control_variate_learning_rate = 0.01
    config.hidden_units = (10,)  # of RELAX's control variate
    config.variance_draws = 10_000  # at a frozen theta, for the variance of the gradient
    config.seed = 0
    config.log_every = 200
    config.jit_compile = True
    config.steps_per_execution = 100
    config.verbose = 1
    return config
