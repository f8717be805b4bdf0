"""The rows of the paper's Table 1, one for each DATASET-ARCHITECTURE-ESTIMATOR:

    python -m examples.vae --config=configs/vae_table1.py:mnist-linear1-rebar --workdir=DIR

with `mnist`, `omniglot` or `digits`, with `linear1`, `linear2`, `nonlinear` or `nonlinear_wide`
(the decoder that the paper's published code has), and with any estimator for discrete variables:
the paper's `nvil`, `muprop`, `rebar` and `relaxed_rebar` (its RELAX), or another, `disarm` for
example.

The paper's settings: batches of 24, 2 000 000 steps, Adam with beta_2 = 0.99999, 1 000 steps in
which the control variate trains alone. The learning rate, `RATES`, was chosen from the paper's grid
(5e-3, 1e-3, 5e-4, 1e-4, 5e-5) by short runs on MNIST (examples/results/vae.md has them);
`--config.learning_rate=...` tries another. The figures to reach stand in the table that
`python -m examples.table` writes.
"""

from configs import vae

RATES = {"linear1": 1e-3, "linear2": 1e-3, "nonlinear": 5e-4, "nonlinear_wide": 5e-4}


def get_config(row="mnist-linear1-relaxed_rebar"):
    parts = row.split("-")
    if len(parts) != 3:
        raise ValueError(
            "the row must be DATASET-ARCHITECTURE-ESTIMATOR, such as 'mnist-linear1-rebar'. "
            f"Received: {row!r}"
        )
    config = vae.get_config()
    config.dataset, config.architecture, config.estimator = parts
    config.steps = 2_000_000
    config.batch_size = 24
    config.learning_rate = RATES.get(config.architecture, 1e-3)
    config.beta_2 = 0.99999
    config.control_variate_learning_rate = 1e-3  # 1 or 10 times the model's in the paper
    config.control_variate_weight_decay = 1e-3  # or 1e-4
    config.warmup_steps = 1_000
    config.log_every = 10_000
    return config
