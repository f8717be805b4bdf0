"""Who is first on MNIST: the runs of `python -m examples.race`, about two hours of one core."""

import ml_collections

BLACK_BOX = ["disarm", "relaxed_disarm", "relax"]
SLOPED = ["flip", "midpoint", "rebar", "relaxed_rebar"]
BIASED = ["reinmax", "straight_through"]


def get_config():
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.log_every = 2_000  # steps between validations
    # Runs: an architecture, steps, a learning rate, and the estimators that try it.
    config.runs = [
        ("linear1", 30_000, "1e-3", [*SLOPED, *BLACK_BOX, *BIASED]),
        ("linear1", 30_000, "1e-3", ["nvil", "muprop", "rloo", "arms", "concrete"]),
        ("linear1", 30_000, "3e-3", [*SLOPED, "disarm", "reinmax"]),
        (
            "linear2",
            20_000,
            "1e-3",
            ["midpoint+flip", *SLOPED, "disarm", "relaxed_disarm", *BIASED],
        ),
        ("linear2", 20_000, "3e-3", ["midpoint+flip", "midpoint", "rebar"]),
        ("nonlinear", 20_000, "5e-4", [*SLOPED, *BLACK_BOX, *BIASED]),
        ("nonlinear", 20_000, "1e-3", ["flip", "midpoint", "rebar"]),
        ("categorical", 20_000, "1e-3", [*SLOPED, "rloo", "relax", *BIASED]),
    ]
    # Nats of validation ELBO to reach.
    config.targets = {
        "linear1": (-135.0, -130.0, -127.0, -124.5),
        "linear2": (-130.0, -125.0, -122.0, -119.5),
        "nonlinear": (-140.0, -132.0, -128.0, -126.0),
        "categorical": (-150.0, -140.0, -136.0, -134.0),
    }
    # Variance: at the model that this estimator has trained, at the first of the rates above.
    config.frozen = {
        "linear1": "flip",
        "linear2": "midpoint+flip",
        "nonlinear": "flip",
        "categorical": "midpoint",
    }
    config.biased = [*BIASED, "concrete"]
    config.adapt_steps = 10_000  # of each control variate, on the frozen model
    config.variance_batch = 100  # validation images
    config.variance_draws = 300
    # Time of a step: models of an architecture take turns in one process.
    config.rounds, config.timed_steps = 7, 500
    return config
