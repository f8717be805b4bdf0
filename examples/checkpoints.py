"""Checkpoints of a run: the last row's, to resume from, and the best one's."""

import errno
import math
import pathlib
import shutil
import warnings
import zipfile

import keras

from examples.runs import replace_file


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
