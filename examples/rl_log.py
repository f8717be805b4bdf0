"""What is kept of a reinforcement-learning run: a row for each episode, and a summary."""

import csv
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from examples.metrics import read_metrics
from examples.runs import replace_file

WORK = ("environment", "acting", "update", "variance")
WINDOW = 100  # episodes whose mean reward decides


class Log:
    """`metrics.csv`: a row for each episode, in the file at every `flush`.

    `step` counts episodes; `reward` is the episode's, undiscounted; `log_variance_METHOD` is
    measured before some of the updates and else NaN; the other columns are seconds of each kind of
    work so far.

    Args:
        path: the file.
        methods: the estimators whose variance is measured.
        start_step: the episode that the run resumes from; newer rows are dropped.
    """

    def __init__(self, path: pathlib.Path, methods: tuple[str, ...], start_step: int):
        self.path = path
        self.columns = ("step", "reward", *(f"log_variance_{name}" for name in methods), *WORK)
        self.rows = [row for row in read_metrics(path) if row["step"] <= start_step]
        self.rewards = [row["reward"] for row in self.rows]

    def seconds(self) -> dict[str, float]:
        return {work: self.rows[-1][work] if self.rows else 0.0 for work in WORK}

    def append(
        self, reward: float, log_variances: Iterable[float], seconds: Mapping[str, float]
    ) -> None:
        self.rewards.append(round(float(reward), 2))
        measured = (round(float(value), 3) for value in log_variances)
        times = (round(seconds[work], 2) for work in WORK)
        row = (len(self.rewards), self.rewards[-1], *measured, *times)
        self.rows.append(dict(zip(self.columns, row, strict=True)))

    def flush(self) -> None:
        replace_file(self.path, lambda path: write_rows(path, self.columns, self.rows))


def write_rows(path: pathlib.Path, columns: tuple[str, ...], rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def solved_at(rewards: list[float], threshold: float) -> int | None:
    """The first episode at which the mean of the last hundred is above the threshold."""
    if len(rewards) < WINDOW:
        return None
    sums = np.cumsum([0.0, *rewards])
    above = np.flatnonzero(sums[WINDOW:] - sums[:-WINDOW] > WINDOW * threshold + 1e-9)
    return int(above[0]) + WINDOW if above.size else None


def summary(log: Log, method: str, seed: int, thresholds: tuple[float, ...]) -> dict:
    """What a run came to: episodes until solved, mean log-variances, and where the time went."""
    result = {
        "method": method,
        "seed": seed,
        "episodes": len(log.rewards),
        "solved": {str(threshold): solved_at(log.rewards, threshold) for threshold in thresholds},
        "mean_reward": round(float(np.mean(log.rewards[-WINDOW:])), 2),
    }
    for name in log.columns:
        if name.startswith("log_variance_"):
            values = [row[name] for row in log.rows if np.isfinite(row[name])]
            result[f"mean_{name}"] = round(float(np.mean(values)), 3) if values else None
    seconds = log.seconds()
    total = sum(seconds.values())
    result["seconds"] = round(total, 1)
    result["share"] = {work: round(value / total, 3) for work, value in seconds.items()}
    return result
