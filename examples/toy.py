"""The toy problem of section 6.1: `min E[(b - t)^2]` with `b ~ Bernoulli(theta)`.

    python -m examples.toy --config=configs/toy.py --workdir=DIR

trains one model for each estimator and seed, and draws Figure 1 of the paper: the loss, the
log-variance of the gradient at the current theta, and the learned relaxation beside REBAR's fixed
one, each with its median and the middle half of the seeds. The relaxations are those that the
estimators learn in as many steps while theta is held at 0.

With one binary variable the constant `c = (1 - p) f(1) + p f(0)`, `p = sigmoid(theta)`, makes
every estimate equal to the gradient: RELAX's network can learn it, and REBAR's relaxation, a
bowl around u = t times a scale, cannot.

`DIR/metrics.csv` has all rows, `DIR/curves.csv` the relaxations, `DIR/results.json` the summary.
The same command goes on with the seeds that are missing; more seeds may be asked for later.

A problem so small needs no data pipeline: instead of `fit`, many training steps of the model are
compiled into one loop, and every seed runs through the same compiled loop.
"""

import csv
import json
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import ml_collections
import numpy as np
import tensorflow as tf

import relax_tf
from examples import figures
from examples.runs import Workdir, replace_file, start

U = np.linspace(0.01, 0.99, 50)  # the noise at which relaxations are drawn


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
    )
    model.optimizer.build(model.trainable_variables)
    return model


def theta(model: keras.Model) -> float:
    return float(model.get_layer("b").kernel[0, 0])


def expected_loss(model: keras.Model, target: float) -> float:
    """`E[(b - t)^2]`, exactly."""
    probability = 1 / (1 + np.exp(-theta(model)))
    return probability * (1 - target) ** 2 + (1 - probability) * target**2


def control_variate_curve(model: keras.Model, target: float, u: np.ndarray) -> np.ndarray:
    """`c(z)` at `z = theta + logit(u)`, shape of `u`."""
    z = tf.constant(theta(model) + np.log(u) - np.log1p(-u), tf.float32)[:, tf.newaxis]
    dist = relax_tf.distributions.Bernoulli(tf.fill(z.shape, theta(model)))
    cost = lambda b: tf.squeeze((b - target) ** 2, -1)  # noqa: E731
    estimator, context = model.get_layer("b").estimator, tf.ones_like(z)
    c_z = sum(term.function(z) for term in estimator.terms(dist, cost, context))
    if hasattr(estimator, "baseline"):
        c_z += estimator.baseline.value(context, z.dtype)
    return c_z.numpy().astype(float)


def concrete_relaxation(target: float, u: np.ndarray) -> np.ndarray:
    """`f(sigmoid(z / 0.5))` at theta = 0: where REBAR's control variate starts, scale 1."""
    z = np.log(u) - np.log1p(-u)
    return (1 / (1 + np.exp(-z / 0.5)) - target) ** 2


class Trainer:
    """The compiled training loop of one estimator, which every seed runs through."""

    def __init__(self, config: ml_collections.ConfigDict, estimator: str):
        self._config = config
        self._estimator = estimator
        self.model = build_model(config, estimator)
        self._train = self._compiled(self._train_steps)
        self._log_variance = self._compiled(self._gradient_log_variance)

    def run(self, seed: int) -> list[dict[str, float]]:
        """Trains from scratch; a function of `seed` alone. Returns a row each `log_every` steps."""
        self._start(seed)
        rows = [self._row(0)]
        for step in range(self._config.log_every, self._config.steps + 1, self._config.log_every):
            self._train()
            rows.append(self._row(step))
        return rows

    def relaxation(self, seed: int) -> np.ndarray | None:
        """`c(z(u))` at the noise `U`, learned at theta = 0; None without one of z."""
        estimator = self.model.get_layer("b").estimator
        if not (estimator.trainable_variables and hasattr(estimator, "terms")):
            return None
        self._start(seed)
        self.model.optimizer.learning_rate = 0.0  # the model's; phi goes on learning
        for _ in range(0, self._config.steps, self._config.log_every):
            self._train()
        return control_variate_curve(self.model, self._config.target, U)

    def _start(self, seed: int) -> None:
        """Puts the compiled model into the state of a fresh one of this seed."""
        keras.utils.set_random_seed(seed)
        fresh = build_model(self._config, self._estimator)
        for ours, theirs in zip(_state(self.model), _state(fresh), strict=True):
            ours.assign(theirs)

    def _row(self, step: int) -> dict[str, float]:
        # The draws for the variance are no part of the run: they leave its noise where it was.
        noise = self.model.get_layer("b").seed_generator.state
        before = tf.identity(noise.value)
        log_variance = float(self._log_variance())
        noise.assign(before)
        return {
            "step": step,
            "loss": expected_loss(self.model, self._config.target),
            "log_variance": log_variance,
            "theta": theta(self.model),
        }

    def _compiled(self, function: Callable) -> Callable:
        return tf.function(function, jit_compile=self._config.jit_compile)

    def _train_steps(self) -> None:
        example = tf.ones([1, 1]), self._config.target * tf.ones([1, 1])
        train_step = tf.autograph.experimental.do_not_convert(self.model.train_step)
        for _ in tf.range(self._config.log_every):
            train_step(example)

    @tf.autograph.experimental.do_not_convert
    def _gradient_log_variance(self) -> tf.Tensor:
        """Of many draws of the gradient estimate at the current theta."""
        ones = tf.ones([self._config.variance_draws, 1])
        estimates = self.model.estimate(ones, self._config.target * ones).estimates
        return tf.math.log(tf.math.reduce_variance(estimates["b"].gradient))


def _state(model: keras.Model) -> list[keras.Variable]:
    return [*model.variables, *model.optimizer.variables]


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
    """Runs every estimator and seed, and returns the summary that `results.json` holds."""
    if config.steps % config.log_every:
        raise ValueError(
            "`config.steps` must be a multiple of `config.log_every`. "
            f"Received: {config.steps} and {config.log_every}"
        )
    folder = Workdir(workdir, config)
    curves_file = folder.path / "curves.csv"
    rows, curves = _read(folder.metrics), _read(curves_file)
    for estimator in config.estimators:
        seeds = range(config.first_seed, config.first_seed + config.seeds)
        done = {
            row["seed"]
            for row in rows
            if (row["estimator"], row["step"]) == (estimator, config.steps)
        }
        missing = [seed for seed in seeds if seed not in done]
        trainer = Trainer(config, estimator) if missing else None
        for seed in missing:
            labels = {"estimator": estimator, "seed": seed}
            new_rows = trainer.run(seed)
            curves = [curve for curve in curves if labels.items() - curve.items()]
            if (curve := trainer.relaxation(seed)) is not None:
                curves += [labels | {"u": u, "c": c} for u, c in zip(U, curve, strict=True)]
            _write(curves_file, curves)  # first: a seed whose rows are there is complete
            rows = [row for row in rows if labels.items() - row.items()]  # of fewer steps
            rows += [labels | row for row in new_rows]
            _write(folder.metrics, rows)
            if config.verbose:
                print(f"{estimator}, seed {seed}: loss {rows[-1]['loss']:.5f}", flush=True)
    results = report(folder.path, folder.figures / "toy.png", config.target)
    for estimator, values in results["estimators"].items():
        print(
            f"{estimator}: loss at the end, median of {values['seeds']} seeds "
            f"{values['loss_median']:.5f} (middle half {values['loss_lower']:.5f} to "
            f"{values['loss_upper']:.5f}); log-variance {values['log_variance_median']:.2f}"
        )
    print(f"optimum {results['optimum']:.5f}. Results in {folder.path}")
    return results


def report(folder: pathlib.Path, figure: pathlib.Path, target: float) -> dict[str, Any]:
    """Writes `results.json` of the rows and relaxations in a folder, and draws Figure 1."""
    rows, curves = _read(folder / "metrics.csv"), _read(folder / "curves.csv")
    results = summary(rows, curves, target)
    text = json.dumps(results, indent=2) + "\n"
    replace_file(folder / "results.json", lambda path: path.write_text(text))
    concrete = {"u": U, "c": concrete_relaxation(target, U)}
    figures.toy(figure, rows, curves, concrete, target)
    return results


def summary(
    rows: list[dict[str, Any]], curves: list[dict[str, Any]], target: float
) -> dict[str, Any]:
    """Median and quartiles over the seeds at the last step of each estimator.

    `relaxation_mean` and `relaxation_span` (highest less lowest value) describe the relaxations
    over the noise `U`, medians over the seeds.
    """
    last = max(row["step"] for row in rows)
    results = {"step": last, "optimum": min(target, 1 - target) ** 2, "estimators": {}}
    for estimator in dict.fromkeys(row["estimator"] for row in rows):
        final = [row for row in rows if row["estimator"] == estimator and row["step"] == last]
        lower, median, upper = np.quantile([row["loss"] for row in final], [0.25, 0.5, 0.75])
        results["estimators"][estimator] = {
            "seeds": len(final),
            "loss_lower": float(lower),
            "loss_median": float(median),
            "loss_upper": float(upper),
            "log_variance_median": float(np.median([row["log_variance"] for row in final])),
        }
        if c := [row["c"] for row in curves if row["estimator"] == estimator]:
            relaxations = np.reshape(c, [len(final), -1])
            values = results["estimators"][estimator]
            values["relaxation_mean"] = float(np.median(relaxations.mean(1)))
            values["relaxation_span"] = float(np.median(np.ptp(relaxations, axis=1)))
    return results


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    kinds = {"estimator": str, "seed": int, "step": int}
    with path.open(newline="") as file:
        return [
            {key: kinds.get(key, float)(value) for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def _write(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return

    def write(temporary: pathlib.Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(
                {k: f"{v:.7g}" if isinstance(v, float) else v for k, v in row.items()}
                for row in rows
            )

    replace_file(path, write)


if __name__ == "__main__":
    start(train_and_evaluate)
