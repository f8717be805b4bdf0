"""What every experiment shares: its workdir, its flags, and how it resumes.

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
dropped on resuming. A damaged file is refused. The callbacks that write are in `metrics.py` and
`checkpoints.py`.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
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
