"""Who is first on MNIST: the runs of `python -m examples.race`, an hour and a half of one core."""

import ml_collections

# The rest of the library has no place here: `arm` is `disarm` with more noise, `vimco` another
# bound, `lax` and `reparameterization` are for continuous variables.
DIFFERENTIABLE = ["flip", "midpoint", "rebar", "relaxed_rebar", "muprop"]
BLACK_BOX = ["relaxed_disarm", "disarm", "arms", "relax", "nvil"]
BIASED = ["reinmax", "straight_through", "concrete"]


def get_config():
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.log_every = 2_000  # steps between validations
    # Runs: an architecture, steps, a learning rate, and the estimators that try it.
    deep = ["midpoint+flip", "flip", "rebar", "relaxed_rebar", "relaxed_disarm", "disarm"]
    one_hot = ["midpoint", "flip", "rebar", "relaxed_rebar", "rloo", "arms", "relax"]
    everyone = [*DIFFERENTIABLE, *BLACK_BOX, *BIASED]
    config.runs = [
        ("linear1", 30_000, "1e-3", everyone),
        ("linear1", 30_000, "3e-3", everyone),
        ("linear2", 20_000, "1e-3", [*deep, "nvil", "reinmax"]),
        ("linear2", 20_000, "3e-3", ["midpoint+flip", "flip", "rebar", "disarm"]),
        ("nonlinear", 20_000, "5e-4", ["midpoint", *deep[1:], "nvil", "reinmax"]),
        ("nonlinear", 20_000, "1e-3", ["midpoint", "flip", "rebar", "disarm"]),
        ("categorical", 20_000, "1e-3", [*one_hot, "reinmax"]),
        ("categorical", 20_000, "3e-3", ["midpoint", "flip", "rebar", "rloo", "arms"]),
    ]
    # Nats of validation ELBO to reach.
    config.targets = {
        "linear1": (-135.0, -130.0, -127.0, -124.5),
        "linear2": (-130.0, -125.0, -122.0, -119.5),
        "nonlinear": (-140.0, -132.0, -128.0, -126.0),
        "categorical": (-130.0, -125.0, -123.0, -122.0),
    }
    # Variance: at the model that this estimator has trained, at the first of the rates above.
    config.frozen = {
        "linear1": "flip",
        "linear2": "midpoint+flip",
        "nonlinear": "flip",
        "categorical": "midpoint",
    }
    config.biased = BIASED  # no variance is shown of these
    config.adapt_steps = 10_000  # of each control variate, on the frozen model
    config.variance_batch = 100  # validation images
    config.variance_draws = 300
    # Time of a step: models of an architecture take turns in one process.
    config.rounds, config.timed_steps = 5, 300
    return config
