"""Times steps of `model.fit`: several models in one process that take turns; medians; CSV files."""

import csv
import pathlib
import statistics
import time
from typing import NamedTuple

import keras
import tensorflow as tf
from absl import flags

from benchmarks import models

ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds of each model.")
STEPS = flags.DEFINE_integer("steps", 300, "Steps in a round.")
ESTIMATORS = flags.DEFINE_list("estimators", None, "Ids, the floor first; default: all.")
OUT = flags.DEFINE_string("out", None, "Folder for CSV files and charts; rows join those in it.")
MEMORY = flags.DEFINE_bool("memory", False, "Measure memory, in child processes, and no times.")

# How a model is compiled: the library at its best, and what most users run.
XLA = {"jit_compile": True, "steps_per_execution": 50}
DEFAULT = {"jit_compile": False, "steps_per_execution": 1}


class Timing(NamedTuple):
    """The median over rounds of the time of a step, and seconds to trace and compile it."""

    milliseconds: float
    compile_seconds: float


class _EpochTimer(keras.callbacks.Callback):
    """Seconds of an epoch, from inside: `fit` has start-up costs of its own."""

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds = time.perf_counter() - self._start


def race(
    competitors: dict[str, keras.Model],
    datasets: tf.data.Dataset | dict[str, tf.data.Dataset],
    rounds: int,
    steps: int,
) -> dict[str, Timing]:
    """Trains the models in turn, `steps` steps in each of the rounds.

    The first round, in which a model is traced and compiled, does not count; what it takes longer
    than the median round is the time of tracing and compiling.

    Args:
        competitors: compiled models by name.
        datasets: endless batches, of all models or by name.
        rounds, steps: at least one.
    """
    timer = _EpochTimer()
    tf.get_logger().setLevel("ERROR")  # it takes several models for one that is traced again

    def seconds(name: str) -> float:
        dataset = datasets[name] if isinstance(datasets, dict) else datasets
        arguments = {"steps_per_epoch": steps, "callbacks": [timer], "shuffle": False}
        competitors[name].fit(dataset, verbose=0, **arguments)
        return timer.seconds

    first = {name: seconds(name) for name in competitors}
    times = [{name: seconds(name) for name in competitors} for _ in range(rounds)]
    medians = {name: statistics.median(row[name] for row in times) for name in competitors}
    return {
        name: Timing(1e3 * medians[name] / steps, first[name] - medians[name])
        for name in competitors
    }


def compare(
    batch_size: int, cases: dict[str, dict], setting: dict, rounds: int, steps: int
) -> list[dict]:
    """A table: the time of a step of each case, and its ratio to the first, the floor.

    Args:
        batch_size: of all.
        cases: arguments of `models.compiled`, by name.
        setting: `XLA`, `DEFAULT` or the like.
        rounds, steps: as in `race`.
    """
    competitors = {name: models.compiled(**case, **setting) for name, case in cases.items()}
    timings = race(competitors, models.data(batch_size), rounds, steps)
    floor = next(iter(timings.values()))
    return [
        {
            "batch": batch_size,
            "xla": setting["jit_compile"],
            "estimator": name,
            "ms": timing.milliseconds,
            "ratio": timing.milliseconds / floor.milliseconds,
            "compile_s": timing.compile_seconds,
        }
        for name, timing in timings.items()
    ]


def merge_csv(path: pathlib.Path, rows: list[dict], keys: tuple[str, ...]) -> list[dict[str, str]]:
    """Adds rows to a file, in the place of those with equal `keys`, and returns all rows."""
    rows = [{name: _text(value) for name, value in row.items()} for row in rows]
    old = list(csv.DictReader(path.open())) if path.exists() else []
    merged = {tuple(row[key] for key in keys): row for row in [*old, *rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(merged.values())
    return list(merged.values())


def print_table(rows: list[dict]) -> None:
    """Rows of equal columns, aligned."""
    texts = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for text in texts:
        print("  ".join(cell.rjust(width) for cell, width in zip(text, widths, strict=True)))


def _text(value) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
