"""The toy problem of section 6.1: `min_theta E[(b - t)^2]` with `b ~ Bernoulli(theta)`.

    python -m examples.toy --config=configs/toy.py --workdir=DIR

trains one model for each estimator and draws Figure 1 of the paper: the loss, the log-variance of
the gradient at the current theta, and the learned relaxation beside REBAR's fixed one. Each model
keeps its run in `DIR/ESTIMATOR`, and `DIR/metrics.csv` has them all. The same command resumes.
"""

import csv
import pathlib

import keras
import ml_collections
import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from ml_collections import config_flags

import relax_tf
from examples import figures
from examples.runs import (
    Checkpoint,
    MetricsCSV,
    Workdir,
    read_metrics,
    replace_file,
    stop_on_nan,
    tensorboard,
)

_CONFIG = config_flags.DEFINE_config_file("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)


def build_model(config: ml_collections.ConfigDict, estimator: str) -> relax_tf.RelaxModel:
    """One binary unit whose logit theta, starting at 0, is the weight of the constant input 1."""
    if estimator in ("relax", "relaxed_rebar"):
        network = relax_tf.control_variates.MLP(config.hidden_units)
        estimator = type(relax_tf.estimators.get(estimator))(control_variate=network)
    inputs = keras.Input([1])
    b = relax_tf.StochasticBinaryLayer(
        1, estimator=estimator, use_bias=False, kernel_initializer="zeros", name="b"
    )(inputs)
    model = relax_tf.RelaxModel(inputs, b)
    model.compile(
        relax_tf.RelaxOptimizer(
            keras.optimizers.Adam(config.learning_rate),
            keras.optimizers.Adam(config.control_variate_learning_rate),
        ),
        loss="mse",
        jit_compile=config.jit_compile,
        steps_per_execution=config.steps_per_execution,
    )
    return model


def theta(model: keras.Model) -> float:
    return float(model.get_layer("b").kernel[0, 0])


def expected_loss(model: keras.Model, target: float) -> float:
    """`E[(b - t)^2]`, exactly."""
    probability = 1 / (1 + np.exp(-theta(model)))
    return probability * (1 - target) ** 2 + (1 - probability) * target**2


def gradient_log_variance(model: keras.Model, target: float, draws: int) -> float:
    """Logarithm of the variance over many draws of the gradient estimate at the current theta."""
    ones = tf.ones([draws, 1])
    gradient = model.estimate(ones, target * ones).estimates["b"].gradient
    return float(tf.math.log(tf.math.reduce_variance(gradient)))


def control_variate_curve(model: keras.Model, target: float, u: np.ndarray) -> np.ndarray:
    """`c(z)` of the trained model at `z = theta + logit(u)`, shape of `u`."""
    z = tf.constant(theta(model) + np.log(u) - np.log1p(-u), tf.float32)[:, tf.newaxis]
    dist = relax_tf.distributions.Bernoulli(tf.fill(z.shape, theta(model)))
    terms = model.get_layer("b").estimator.terms(
        dist, lambda b: tf.squeeze((b - target) ** 2, -1), tf.ones_like(z)
    )
    return sum(term.function(z) for term in terms).numpy()


def train(config: ml_collections.ConfigDict, folder: Workdir, estimator: str) -> keras.Model:
    """Trains one model, or goes on training it."""
    keras.utils.set_random_seed(config.seed)
    model = build_model(config, estimator)
    checkpoint = Checkpoint(folder.checkpoints / "toy.keras")
    start_step = checkpoint.restore(model)
    columns = {
        "loss": lambda logs: expected_loss(model, config.target),
        "log_variance": lambda logs: gradient_log_variance(
            model, config.target, config.variance_draws
        ),
        "theta": lambda logs: theta(model),
    }
    metrics = MetricsCSV(folder.metrics, columns, start_step, config.log_every)
    if start_step == 0:
        metrics.write(0, {})
    example = tf.ones([1, 1]), config.target * tf.ones([1, 1])
    print(f"{estimator}:")
    model.fit(
        tf.data.Dataset.from_tensors(example).repeat().with_options(_options()),
        initial_epoch=start_step // config.log_every,
        epochs=config.steps // config.log_every,
        steps_per_epoch=config.log_every,
        shuffle=False,
        verbose=config.verbose,
        callbacks=[stop_on_nan(), metrics, *tensorboard(folder), checkpoint],
    )
    return model


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str) -> dict[str, list[dict]]:
    """Runs every estimator and returns the rows of their metrics."""
    folder = Workdir(workdir, config)
    rows, curves = {}, {}
    u = np.linspace(0.005, 0.995, 199)
    for estimator in config.estimators:
        run = Workdir(folder.path / estimator, config)
        model = train(config, run, estimator)
        rows[estimator] = [row for row in read_metrics(run.metrics) if row["step"] <= config.steps]
        if model.get_layer("b").estimator.trainable_variables:
            curves[estimator] = control_variate_curve(model, config.target, u)
        last = rows[estimator][-1]
        print(f"{estimator}: loss {last['loss']:.5f}, log-variance {last['log_variance']:.2f}")
    replace_file(folder.metrics, lambda path: _write_all(path, rows))
    figures.toy(folder.figures / "toy.png", rows, u, curves, config.target)
    print(f"optimum {min(config.target, 1 - config.target) ** 2:.5f}. Results in {folder.path}")
    return rows


def _write_all(path: pathlib.Path, rows: dict[str, list[dict]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["estimator", *next(iter(rows.values()))[0]])
        writer.writeheader()
        for estimator, lines in rows.items():
            writer.writerows({"estimator": estimator, **line} for line in lines)


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)
    train_and_evaluate(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    app.run(main)
