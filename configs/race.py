"""Who is first on MNIST: the runs of `python -m examples.race`, half an hour of one core."""

import ml_collections

SLOPED = ["flip", "midpoint", "rebar", "relaxed_rebar"]


def get_config():
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.log_every = 2_000  # steps between validations
    # Runs: an architecture, steps, a learning rate, and the estimators that try it.
    config.runs = [
        ("linear1", 30_000, "1e-3", [*SLOPED, "relaxed_disarm", "disarm"]),
        ("linear2", 20_000, "1e-3", ["midpoint+flip", "flip", "rebar", "relaxed_rebar", "disarm"]),
        ("nonlinear", 20_000, "5e-4", ["flip", "midpoint", "rebar", "disarm"]),
        ("categorical", 20_000, "1e-3", ["midpoint", "flip", "rebar", "rloo"]),
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
    config.biased = ["reinmax", "straight_through", "concrete"]  # no variance is shown of these
    config.adapt_steps = 10_000  # of each control variate, on the frozen model
    config.variance_batch = 100  # validation images
    config.variance_draws = 300
    # Time of a step: models of an architecture take turns in one process.
    config.rounds, config.timed_steps = 5, 300
    return config
