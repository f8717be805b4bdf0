"""`metrics.csv`: a row each epoch, written by a callback and read again on resuming."""

import csv
import pathlib
import time
from typing import Any

import keras

from examples.runs import replace_file


class MetricsCSV(keras.callbacks.Callback):
    """Appends a row of metrics to a CSV file at the end of every epoch.

    Args:
        path: the file.
        columns: for each column the function that computes it from Keras's logs; `step` comes
            first and `seconds` (of training and evaluation, resumed runs added up) last.
        start_step: the step that the run resumes from; newer rows are dropped.
        steps_per_epoch: steps between two rows.

    Raises:
        ValueError: if the file is damaged or lacks the row of `start_step`.
    """

    def __init__(
        self, path: pathlib.Path, columns: dict[str, Any], start_step: int, steps_per_epoch: int
    ):
        super().__init__()
        self.path = path
        self.columns = columns
        self.steps_per_epoch = steps_per_epoch
        rows = read_metrics(path) if start_step else []  # without a checkpoint it starts anew
        self.rows = [row for row in rows if row["step"] <= start_step]
        if start_step and (not self.rows or self.rows[-1]["step"] != start_step):
            raise ValueError(
                f"{path} lacks the row of step {start_step}, where the run resumes. Restore the "
                "file, or start anew in another --workdir."
            )
        self._seconds = self.rows[-1]["seconds"] if self.rows else 0.0

    def write(self, step: int, logs: dict[str, float]) -> None:
        values = {name: float(column(logs)) for name, column in self.columns.items()}
        self.rows.append({"step": step, **values, "seconds": round(self._seconds, 2)})
        replace_file(self.path, self._write)

    def _write(self, path: pathlib.Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["step", *self.columns, "seconds"])
            writer.writeheader()
            writer.writerows(self.rows)

    def on_train_begin(self, logs=None):
        self._since = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        now = time.monotonic()
        self._seconds, self._since = self._seconds + now - self._since, now
        self.write((epoch + 1) * self.steps_per_epoch, logs)


def read_metrics(path: pathlib.Path) -> list[dict[str, float]]:
    """The rows of a `metrics.csv`, as numbers, NaN where empty; none if there is no file."""
    if not path.exists():
        return []
    try:
        text = path.read_text()
        if not text.endswith("\n"):
            raise ValueError("it ends within a row")
        return [
            {
                key: int(value) if key == "step" else float("nan" if value == "" else value)
                for key, value in row.items()
            }
            for row in csv.DictReader(text.splitlines(), strict=True)
        ]
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path} is damaged: {error}. Restore or remove it.") from error
