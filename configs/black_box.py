"""Scheduling with a simulator in NumPy as cost: estimators that ask nothing of it, three seeds.

python -m examples.black_box --config=configs/black_box.py --workdir=/tmp/black_box
"""

import ml_collections


def get_config():
    config = ml_collections.ConfigDict()
    config.jobs = 12
    config.units = 64  # of the policy's hidden layer
    config.estimators = (
        *("reinforce", "reinforce_baseline", "nvil", "relax"),  # one evaluation
        *("disarm", "relaxed_disarm"),  # two
    )
    config.num_seeds = 3
    config.seed = 0  # the first one
    config.steps = 3_000
    config.batch_size = 16
    config.learning_rate = 3e-3
    config.control_variate_learning_rate = 3e-3
    config.validation_days = 64
    config.variance_draws = 100  # at a frozen point, for the variance of the gradient
    config.log_every = 500
    config.jit_compile = False  # XLA cannot call Python
    config.steps_per_execution = 50
    config.verbose = 0
    return config
