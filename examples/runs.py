"""What every experiment shares: its workdir, checkpoints, `metrics.csv`, and how it resumes.

    workdir/config.json              the run's configuration
    workdir/provenance.json          the commands and commits that it was run with
    workdir/metrics.csv              one row each `log_every` steps
    workdir/checkpoints/NAME.keras   model, optimizers and noise state at the last row
    workdir/checkpoints/best.keras   (vae) the same at the best row
    workdir/results.json             (vae) what is computed once, at the end
    workdir/figures/*.png
    workdir/tensorboard/             when TensorBoard is installed

The same command resumes a run that was stopped or killed. A row is written before its checkpoint
and each file is replaced in one move once it is on the disk, so a kill or a power cut loses the
steps since the last checkpoint and nothing else; rows that are newer than the checkpoint are
dropped on resuming. A damaged file is refused.
"""

import csv
import errno
import importlib.util
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import keras
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

# May change when a run is resumed: how long, and how it is executed.
_MAY_CHANGE = {
    *("steps", "episodes", "seeds", "iwae_samples", "verbose", "render", "data_dir"),
    *("jit_compile", "steps_per_execution", "threads"),
}


class Workdir:
    """The folder of one run.

    Args:
        path: created if missing.
        config: the run's configuration; it must agree with the one that an earlier run left.

    Raises:
        OSError: if the folder cannot be written.
        ValueError: if it holds a run with another configuration, or a damaged `config.json`.
    """

    def __init__(self, path: str, config: ml_collections.ConfigDict):
        self.path = pathlib.Path(path)
        for folder in (self.path, self.checkpoints, self.figures):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OSError(
                    error.errno, f"--workdir cannot be written: {error.strerror}", str(folder)
                ) from error
        self._agree(json.loads(config.to_json_best_effort()))
        self._note_provenance()

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
            try:
                earlier = dict(json.loads(file.read_text()))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{file} is damaged: {error}. Restore or remove it.") from error
            # A field that a newer version brought along is no change.
            changed = {
                key for key in earlier.keys() - _MAY_CHANGE if earlier[key] != config.get(key)
            }
            if changed:
                raise ValueError(
                    f"{self.path} holds a run with another configuration; they differ in "
                    f"{sorted(changed)}. Choose another --workdir or remove this one."
                )
        replace_file(file, lambda path: path.write_text(json.dumps(config, indent=2) + "\n"))

    def _note_provenance(self) -> None:
        """Appends this command and commit to those that an earlier start left."""
        file = self.path / "provenance.json"
        entries = json.loads(file.read_text()) if file.exists() else []
        entry = {"command": " ".join(sys.argv), "commit": commit()}
        if entry not in entries:
            text = json.dumps([*entries, entry], indent=2) + "\n"
            replace_file(file, lambda path: path.write_text(text))


def commit() -> str:
    """The commit that is running, `-dirty` with changes to it; `"unknown"` outside of git."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=pathlib.Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def replace_file(path: pathlib.Path, write) -> None:
    """Lets `write(temporary_path)` write a file and moves it to `path` in one step.

    The move waits until the contents are on the disk: no power cut leaves an empty file behind.

    Raises:
        OSError: if the disk is full or the folder closed; `path` is then as it was.
    """
    temporary = path.with_name(f"tmp-{path.name}")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = f"cannot be written, and is left as it was: {error.strerror or error}"
        raise OSError(error.errno, reason, str(path)) from error


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
        """Loads the last checkpoint into a compiled model and returns the step it stands at.

        Raises:
            OSError: if the disk has no room for the checkpoints to come.
            ValueError: if the checkpoint is damaged or does not fit the model.
        """
        model.optimizer.build(model.trainable_variables)
        self._check_room([*model.variables, *model.optimizer.variables])
        if not self.path.exists():
            return 0
        try:
            _check_archive(self.path)
            with warnings.catch_warnings():
                # Keras only warns that it leaves another optimizer's state out: at step 0.
                warnings.filterwarnings("error", message="Skipping variable loading")
                model.load_weights(self.path)
        except Exception as error:
            raise ValueError(
                f"the checkpoint {self.path} is damaged or belongs to another model: {error}"
            ) from error
        return int(model.optimizer.iterations)

    def _check_room(self, variables: list[keras.Variable]) -> None:
        """The new checkpoint is written before the old one goes."""
        needed = sum(variable.numpy().nbytes for variable in variables)
        folder = next(parent for parent in self.path.absolute().parents if parent.exists())
        free = shutil.disk_usage(folder).free
        if free < needed:
            reason = f"no room for a checkpoint of {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB free"
            raise OSError(errno.ENOSPC, reason, str(self.path))


def _check_archive(path: pathlib.Path) -> None:
    """Compares every member of a `.keras` file with its checksum; loading reads only some."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {damaged!r}")


def stop_on_nan() -> keras.callbacks.Callback:
    """Ends a run whose loss is NaN, before a row or a checkpoint of that epoch is written."""
    return keras.callbacks.TerminateOnNaN(raise_error=True)


class BestCheckpoint(keras.callbacks.Callback):
    """Saves the model at the end of the epoch in which a metric is highest.

    Use it between `MetricsCSV` and `Checkpoint`. A run that is killed in between goes back to its
    checkpoint, and writes the same model once more.

    Args:
        path: a file `*.keras`.
        rows: those of the `MetricsCSV`; it appends to them. The row of step 0 does not count.
        column: the metric.
    """

    def __init__(self, path: pathlib.Path, rows: list[dict[str, float]], column: str):
        super().__init__()
        self.path = path
        self.rows = rows
        self.column = column

    def on_epoch_end(self, epoch, logs=None):
        *earlier, last = [row[self.column] for row in self.rows if row["step"] > 0]
        if last > max(earlier, default=-math.inf):
            replace_file(self.path, lambda path: self.model.save(path))


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


def start(example: Callable[[Any, str], Any]) -> None:
    """Runs an example as a program with the flags `--config` and `--workdir`, its arguments."""
    config = config_flags.DEFINE_config_file("config")
    workdir = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)

    def main(argv):
        del argv
        logging.set_verbosity(logging.WARNING)
        example(config.value, workdir.value)

    app.run(main)


def tensorboard(workdir: Workdir) -> list[keras.callbacks.Callback]:
    """A TensorBoard callback where TensorBoard is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return []
    return [keras.callbacks.TensorBoard(workdir.path / "tensorboard", write_graph=False)]
