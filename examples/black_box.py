"""A cost without a gradient: learning to schedule jobs from what a simulator in Python returns.

    python -m examples.black_box --config=configs/black_box.py --workdir=DIR

A workshop has two machines, the second slower than the first. Jobs arrive in a fixed order; each
has a colour, and a machine that changes colour must be cleaned first. A policy network looks at the
jobs' durations and gives the probability that each job goes to the second machine; a simulator
(`examples/workshop.py`) returns when the last machine stops. That is plain NumPy: TensorFlow sees
a number and nothing else, so only estimators that ask nothing of the cost can train the policy.

Every estimator trains from several seeds, each run in `DIR/ESTIMATOR-SEED`; `DIR/metrics.csv` has
all of them, `DIR/figures/black_box.png` the cost and the log-variance of the gradient against the
step. The same command resumes.
"""

import csv
import pathlib

import keras
import ml_collections
import numpy as np
import tensorflow as tf

import relax_tf
from examples import figures
from examples.checkpoints import Checkpoint
from examples.metrics import MetricsCSV
from examples.runs import Workdir, replace_file, start, tensorboard
from examples.workshop import best_schedules, schedule

ESTIMATORS = {
    "reinforce": relax_tf.estimators.Reinforce,
    "reinforce_baseline": lambda: relax_tf.estimators.Reinforce(baseline_decay=0.9),
    "nvil": relax_tf.estimators.Nvil,
    "relax": relax_tf.estimators.Relax,
    "disarm": relax_tf.estimators.Disarm,
    "relaxed_disarm": relax_tf.estimators.RelaxedDisarm,
}


class Workshop(relax_tf.RelaxModel):
    """From durations to machines; its cost is the length of the day, in hours."""

    def compute_cost(self, x, y, y_pred, latents, sample_weight=None):
        return tf.numpy_function(schedule, [x, y_pred], x.dtype)


def build_model(config: ml_collections.ConfigDict, estimator: str, seed: int) -> Workshop:
    """The compiled model; its policy starts out the same with every estimator."""
    if estimator not in ESTIMATORS:
        raise ValueError(
            f"`config.estimators` must be among {sorted(ESTIMATORS)}. Received: {estimator!r}"
        )
    inputs = keras.Input([config.jobs], name="durations")
    first_kernel, second_kernel = (keras.initializers.GlorotUniform(2 * seed + k) for k in (0, 1))
    hidden = keras.layers.Dense(
        config.units, activation="tanh", kernel_initializer=first_kernel, name="hidden"
    )(inputs)
    second = relax_tf.StochasticBinaryLayer(
        config.jobs, ESTIMATORS[estimator](), kernel_initializer=second_kernel, name="second"
    )(hidden)
    model = Workshop(inputs, second, name="workshop")
    model.compile(
        relax_tf.RelaxOptimizer(
            keras.optimizers.Adam(config.learning_rate),
            keras.optimizers.Adam(config.control_variate_learning_rate),
        ),
        jit_compile=config.jit_compile,
        steps_per_execution=config.steps_per_execution,
    )
    return model


def workdays(jobs: int, count: int, seed: int, start: int = 0) -> tf.data.Dataset:
    """Batches of durations between 0.5 and 3.5 hours, `[count, jobs]`, a function of seed and step.

    Short jobs are common, long ones rare. `start` leaves out that many batches.
    """

    def batch(step: tf.Tensor) -> tf.Tensor:
        key = tf.stack([tf.constant(seed, tf.int64), step])
        return 0.5 + 3 * tf.random.stateless_uniform([count, jobs], key, alg="philox") ** 2

    options = tf.data.Options()
    options.autotune.enabled = False
    return tf.data.Dataset.counter(start).map(batch).with_options(options)


def validation_days(config: ml_collections.ConfigDict) -> np.ndarray:
    """The same days for all runs, `[config.validation_days, jobs]`."""
    days = workdays(config.jobs, config.validation_days, seed=-1)
    return next(iter(days)).numpy()


def expected_hours(model: keras.Model, days: np.ndarray, draws: int = 20) -> float:
    """The mean length of these days, over draws of the policy."""
    repeated = np.repeat(days, draws, 0)
    second = model.predict(repeated, batch_size=len(repeated), verbose=0)
    return float(schedule(repeated, second).mean())


def gradient_log_variance(model: keras.Model, days: np.ndarray, draws: int) -> float:
    """Logarithm of the variance at theta, mean over days and summed over jobs."""
    variance = relax_tf.diagnostics.gradient_variance(model, tf.constant(days), num_draws=draws)
    return float(np.log(variance.layers["second"]))


def train(
    config: ml_collections.ConfigDict, folder: Workdir, estimator: str, seed: int
) -> list[dict[str, float]]:
    """Trains one policy, or goes on training it, and returns the rows of its metrics."""
    keras.utils.set_random_seed(seed)
    model = build_model(config, estimator, seed)
    checkpoint = Checkpoint(folder.checkpoints / "black_box.keras")
    start_step = checkpoint.restore(model)
    days = validation_days(config)
    columns = {
        "hours": lambda logs: expected_hours(model, days),
        "log_variance": lambda logs: gradient_log_variance(model, days, config.variance_draws),
    }
    metrics = MetricsCSV(folder.metrics, columns, start_step, config.log_every)
    if start_step == 0:
        metrics.write(0, {})
    model.fit(
        workdays(config.jobs, config.batch_size, seed, start_step),
        initial_epoch=start_step // config.log_every,
        epochs=config.steps // config.log_every,
        steps_per_epoch=config.log_every,
        shuffle=False,
        verbose=config.verbose,
        callbacks=[metrics, *tensorboard(folder), checkpoint],
    )
    return metrics.rows


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str) -> dict[str, list]:
    """Trains every estimator from every seed; returns the rows of each run, by estimator."""
    folder = Workdir(workdir, config)
    best = float(best_schedules(validation_days(config)).mean())
    runs = {}
    for estimator in config.estimators:
        runs[estimator] = []
        for seed in range(config.seed, config.seed + config.num_seeds):
            print(f"{estimator}, seed {seed}:")
            run = Workdir(folder.path / f"{estimator}-{seed}", config)
            runs[estimator].append(train(config, run, estimator, seed))
        hours, log_variance = (
            [rows[-1][name] for rows in runs[estimator]] for name in ("hours", "log_variance")
        )
        print(
            f"{estimator}: {np.mean(hours):.3f} hours (seeds {np.min(hours):.3f} to "
            f"{np.max(hours):.3f}; best possible {best:.3f}), "
            f"log-variance {np.mean(log_variance):.2f}"
        )
    replace_file(folder.metrics, lambda path: _write_all(path, runs, config.seed))
    figures.black_box(folder.figures / "black_box.png", runs, best)
    print(f"Results in {folder.path}")
    return runs


def _write_all(path: pathlib.Path, runs: dict[str, list], first_seed: int) -> None:
    with path.open("w", newline="") as file:
        columns = next(iter(runs.values()))[0][0]
        writer = csv.DictWriter(file, ["estimator", "seed", *columns])
        writer.writeheader()
        for estimator, of_seeds in runs.items():
            for seed, rows in enumerate(of_seeds, first_seed):
                writer.writerows({"estimator": estimator, "seed": seed, **row} for row in rows)


if __name__ == "__main__":
    start(train_and_evaluate)
