"""What every experiment shares: its workdir, checkpoints, `metrics.csv`, and how it resumes.

    workdir/config.json              the run's configuration
    workdir/metrics.csv              one row each `log_every` steps
    workdir/checkpoints/NAME.keras   model, optimizers and noise state at the last row
    workdir/figures/*.png
    workdir/tensorboard/             when TensorBoard is installed

The same command resumes a run that was stopped or killed. A row is written before its checkpoint
and each file is replaced in one move, so a kill loses the steps since the last checkpoint and
nothing else; rows that are newer than the checkpoint are dropped on resuming.
"""

import csv
import importlib.util
import json
import os
import pathlib
import time
from typing import Any

import keras
import ml_collections

# May change when a run is resumed: how long, and how it is executed.
_MAY_CHANGE = {
    *("steps", "episodes", "verbose", "render", "data_dir"),
    *("jit_compile", "steps_per_execution", "threads"),
}


class Workdir:
    """The folder of one run.

    Args:
        path: created if missing.
        config: the run's configuration; it must agree with the one that an earlier run left.

    Raises:
        OSError: if the folder cannot be written.
        ValueError: if it holds a run with another configuration.
    """

    def __init__(self, path: str, config: ml_collections.ConfigDict):
        self.path = pathlib.Path(path)
        for folder in (self.path, self.checkpoints, self.figures):
            folder.mkdir(parents=True, exist_ok=True)
        self._agree(json.loads(config.to_json_best_effort()))

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints"

    @property
    def figures(self) -> pathlib.Path:
        return self.path / "figures"

    @property
    def metrics(self) -> pathlib.Path:
        return self.path / "metrics.csv"

    def _agree(self, config: dict[str, Any]) -> None:
        file = self.path / "config.json"
        if file.exists():
            earlier = json.loads(file.read_text())
            changed = {
                key
                for key in (earlier.keys() | config.keys()) - _MAY_CHANGE
                if earlier.get(key) != config.get(key)
            }
            if changed:
                raise ValueError(
                    f"{self.path} holds a run with another configuration; they differ in "
                    f"{sorted(changed)}. Choose another --workdir or remove this one."
                )
        replace_file(file, lambda path: path.write_text(json.dumps(config, indent=2) + "\n"))


def replace_file(path: pathlib.Path, write) -> None:
    """Lets `write(temporary_path)` write a file and moves it to `path` in one step."""
    temporary = path.with_name(f"tmp-{path.name}")
    write(temporary)
    os.replace(temporary, path)


class Checkpoint(keras.callbacks.Callback):
    """Saves the model at the end of every epoch, and brings it back.

    Use it last among the callbacks, after those whose output belongs to the checkpoint.
    """

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        replace_file(self.path, lambda path: self.model.save(path))

    def restore(self, model: keras.Model) -> int:
        """Loads the last checkpoint into a compiled model and returns the step it stands at."""
        model.optimizer.build(model.trainable_variables)
        if not self.path.exists():
            return 0
        try:
            model.load_weights(self.path)
        except Exception as error:
            raise ValueError(
                f"the checkpoint {self.path} is damaged or belongs to another model: {error}"
            ) from error
        return int(model.optimizer.iterations)


class MetricsCSV(keras.callbacks.Callback):
    """Appends a row of metrics to a CSV file at the end of every epoch.

    Args:
        path: the file.
        columns: for each column the function that computes it from Keras's logs; `step` comes
            first and `seconds` (of training and evaluation, resumed runs added up) last.
        start_step: the step that the run resumes from; newer rows are dropped.
        steps_per_epoch: steps between two rows.
    """

    def __init__(
        self, path: pathlib.Path, columns: dict[str, Any], start_step: int, steps_per_epoch: int
    ):
        super().__init__()
        self.path = path
        self.columns = columns
        self.steps_per_epoch = steps_per_epoch
        self.rows = [row for row in read_metrics(path) if row["step"] <= start_step]
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
    with path.open(newline="") as file:
        return [
            {
                key: int(value) if key == "step" else float(value or "nan")
                for key, value in row.items()
            }
            for row in csv.DictReader(file)
        ]


def tensorboard(workdir: Workdir) -> list[keras.callbacks.Callback]:
    """A TensorBoard callback where TensorBoard is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return []
    return [keras.callbacks.TensorBoard(workdir.path / "tensorboard", write_graph=False)]
