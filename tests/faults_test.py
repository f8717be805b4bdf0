"""What breaks from outside: kill -9, damaged files, a full disk, a closed folder."""

import os
import pathlib
import resource
import shutil
import signal
import threading
import zipfile
from typing import NamedTuple

import keras
import ml_collections
import numpy as np
import pytest

import relax_tf
from configs import vae_digits
from examples import vae
from examples.checkpoints import Checkpoint
from examples.metrics import MetricsCSV, read_metrics
from examples.runs import Workdir, replace_file
from tests import programs


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


# Kills.


class Kill(NamedTuple):
    """A moment to die at: `number` seconds after the start, or the `number`-th of some event."""

    moment: str
    number: float


EVENTS = {
    "step": (MetricsCSV, "on_train_batch_end"),
    "half-written": (zipfile._ZipWriteFile, "write"),
    "written": (os, "fsync"),
    "moved": (os, "replace"),
}


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kill):
    """Lets this process kill itself at the moment."""
    if kill.moment == "seconds":
        threading.Timer(kill.number, die).start()
        return
    owner, name = EVENTS[kill.moment]
    original, left = getattr(owner, name), [kill.number]

    def armed(*arguments, **keywords):
        left[0] -= 1
        if left[0]:
            return original(*arguments, **keywords)
        if kill.moment == "half-written":
            stream, content = arguments
            original(stream, content[: len(content) // 2])
            stream._fileobj.flush()
        elif kill.moment == "moved":
            original(*arguments, **keywords)
        return die()

    setattr(owner, name, armed)


def train(workdir, data_dir, steps, kill=None, **overrides):
    if kill is not None:
        arm(kill)
    config = vae_digits.get_config()
    config.update(steps=steps, log_every=50, steps_per_execution=10, jit_compile=False)
    config.update(verbose=0, data_dir=data_dir, units=8, estimator="nvil", **overrides)
    vae.train_and_evaluate(config, str(workdir))


def run(*arguments):
    """The exit code of `train` in a process of its own."""
    process = programs.FORKS.Process(target=train, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def without_seconds(workdir):
    rows = read_metrics(workdir / "metrics.csv")
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def survives(kills, tmp_path, data_dir, steps):
    """Kills a run again and again and compares what it becomes with one that was left alone."""
    assert run(tmp_path / "whole", data_dir, steps) == 0
    step = 0
    for kill in kills:
        assert run(tmp_path / "killed", data_dir, steps, kill) == -signal.SIGKILL, kill
        rows = read_metrics(tmp_path / "killed" / "metrics.csv")
        assert all(row["step"] == 50 * i for i, row in enumerate(rows)), kill
        if rows:
            assert rows[-1]["step"] >= step, kill  # at most the newest row lacks its checkpoint
            step = rows[-1]["step"] - 50
    assert run(tmp_path / "killed", data_dir, steps) == 0
    whole, killed = (without_seconds(tmp_path / name) for name in ("whole", "killed"))
    assert len(whole) == 1 + steps // 50
    np.testing.assert_equal(killed, whole)
    states = []
    for name in ("whole", "killed"):
        with zipfile.ZipFile(tmp_path / name / "checkpoints" / "vae.keras") as archive:
            states.append(archive.read("model.weights.h5"))
    assert states[0] == states[1]


def test_killed_run_ends_like_one_left_alone(tmp_path, data_dir):
    kills = [Kill("step", 3), Kill("half-written", 6), Kill("written", 7)]
    survives(kills, tmp_path, data_dir, steps=400)


@pytest.mark.slow
def test_run_killed_at_twenty_random_moments_ends_like_one_left_alone(tmp_path, data_dir):
    random = np.random.RandomState(0)
    # A second and a half is a quiet machine's start; an epoch has 5 events "step", a checkpoint
    # has 3 writes, and with its row 2 flushes and 2 moves.
    kills = [
        *(Kill("seconds", random.uniform(0, 3)) for _ in range(5)),
        *(Kill("step", random.randint(1, 16)) for _ in range(5)),
        *(Kill("half-written", random.randint(1, 8)) for _ in range(4)),
        *(Kill("written", random.randint(1, 6)) for _ in range(3)),
        *(Kill("moved", random.randint(1, 6)) for _ in range(3)),
    ]
    random.shuffle(kills)
    survives([Kill(*kill) for kill in kills], tmp_path, data_dir, steps=8_000)


# Damaged files.


def small_model():
    inputs = keras.Input([4])
    estimator = relax_tf.estimators.Relax(baseline=relax_tf.control_variates.MLP([4]))
    b = relax_tf.StochasticBinaryLayer(3, estimator, name="b")(inputs)
    model = relax_tf.RelaxModel(inputs, b)
    model.compile("adam", loss="mse", run_eagerly=True)
    return model


def state_of(model):
    return [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint on the disk after one step, the model that wrote it, its bytes and state."""
    model = small_model()
    model.train_on_batch(np.ones([2, 4], "f"), np.ones([2, 3], "f"))
    checkpoint = Checkpoint(tmp_path / "small.keras")
    checkpoint.set_model(model)
    checkpoint.on_epoch_end(0)
    return checkpoint, model, checkpoint.path.read_bytes(), state_of(model)


def is_refused(checkpoint, model, content):
    """Whether restoring from this content raises; if it does not, it must restore everything."""
    checkpoint.path.write_bytes(content)
    try:
        step = checkpoint.restore(model)
    except ValueError as error:
        assert "small.keras is damaged" in str(error)
        return True
    assert step == 1
    return False


def test_no_flipped_bit_of_a_checkpoint_goes_unnoticed(checkpoint):
    checkpoint, model, content, state = checkpoint
    random = np.random.RandomState(0)
    with zipfile.ZipFile(checkpoint.path) as archive:
        members = {info.filename: info for info in archive.infolist()}
    assert set(members) == {"metadata.json", "config.json", "model.weights.h5"}
    data = np.zeros(len(content), bool)  # where the members' contents are; the rest is zip's own
    for info in members.values():
        start = info.header_offset + 30 + len(info.filename)
        assert start < info.header_offset + 30 + len(info.filename) + info.file_size
        data[start : start + info.file_size] = True
    positions = {*random.randint(0, len(content), 200)}
    positions |= {*random.choice(np.flatnonzero(~data), 150)}
    for name in ("metadata.json", "config.json"):  # `load_weights` reads neither
        start = members[name].header_offset + 30 + len(name)
        positions |= {*(start + random.randint(0, members[name].file_size, 20))}
    harmless = 0
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 1 << random.randint(8)
        if not is_refused(checkpoint, model, damaged):
            assert not data[position]
            np.testing.assert_equal(state_of(model), state)
            harmless += 1
    assert harmless < len(positions) / 2  # dates, permissions, versions


def test_no_truncated_checkpoint_goes_unnoticed(checkpoint):
    checkpoint, model, content, state = checkpoint
    random = np.random.RandomState(0)
    for length in {0, 1, len(content) - 1, *random.randint(0, len(content), 50)}:
        assert is_refused(checkpoint, model, content[:length])
    assert not is_refused(checkpoint, model, content)
    np.testing.assert_equal(state_of(model), state)


def test_checkpoint_of_another_model_is_refused(checkpoint):
    checkpoint, *_ = checkpoint
    inputs = keras.Input([4])
    other = relax_tf.RelaxModel(inputs, relax_tf.StochasticBinaryLayer(2, name="b")(inputs))
    other.compile("adam", loss="mse")
    with pytest.raises(ValueError, match="belongs to another model"):
        checkpoint.restore(other)
    same, optimizer = small_model(), keras.optimizers.SGD(momentum=0.9)
    same.compile(optimizer, loss="mse")
    with pytest.raises(ValueError, match=r"belongs to another model.*optimizer"):
        checkpoint.restore(same)


def test_run_killed_before_its_first_checkpoint_starts_anew(tmp_path):
    for _ in range(2):
        metrics = MetricsCSV(tmp_path / "metrics.csv", {"loss": lambda logs: logs["loss"]}, 0, 50)
        metrics.write(0, {"loss": 0.5})
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == [0]


def test_run_whose_loss_is_nan_ends_without_a_checkpoint(tmp_path, data_dir):
    with pytest.raises(RuntimeError, match="NaN or Inf loss"):
        train(tmp_path, data_dir, steps=50, learning_rate=1e38)
    assert not list((tmp_path / "checkpoints").iterdir())
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.csv")] == [0]


def test_damaged_config_and_metrics_are_named(tmp_path):
    config = ml_collections.ConfigDict({"steps": 100})
    workdir = Workdir(tmp_path, config)
    metrics = MetricsCSV(workdir.metrics, {"loss": lambda logs: logs["loss"]}, 0, 50)
    for step in (0, 50, 100):
        metrics.write(step, {"loss": 0.5})
    rows = workdir.metrics.read_bytes()
    assert [row["step"] for row in MetricsCSV(workdir.metrics, {}, 50, 50).rows] == [0, 50]
    for damaged in (rows[:-5], rows.replace(b"50,0.5", b"5x,0.5"), rows + b"1,2,3,4\n", b"\xff\n"):
        workdir.metrics.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"metrics.csv (is damaged|lacks the row of step 100)"):
            MetricsCSV(workdir.metrics, {}, 100, 50)
    workdir.metrics.unlink()
    with pytest.raises(ValueError, match=r"metrics.csv lacks the row of step 100"):
        MetricsCSV(workdir.metrics, {}, 100, 50)
    for damaged in ("{", "3", '{"steps": 100', "\0"):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"config.json is damaged"):
            Workdir(tmp_path, config)


# Disks and folders.


def test_a_full_disk_leaves_the_last_checkpoint_as_it_was(checkpoint):
    checkpoint, model, content, _ = checkpoint
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot be written, and is left as it was.*small.keras"):
            checkpoint.on_epoch_end(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.path.read_bytes() == content
    assert [path.name for path in checkpoint.path.parent.iterdir()] == ["small.keras"]
    assert checkpoint.restore(model) == 1


def test_no_room_for_checkpoints_is_said_before_training(checkpoint, monkeypatch):
    checkpoint, model, *_ = checkpoint
    usage = shutil.disk_usage(checkpoint.path.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(
        OSError, match=r"no room for a checkpoint of 0.5 MB, 0.0 MB free.*small.keras"
    ):
        checkpoint.restore(model)


def test_unwritable_workdir_is_said_before_training(tmp_path):
    config = ml_collections.ConfigDict({"steps": 100})
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"--workdir cannot be written: .*file/run"):
        Workdir(tmp_path / "file" / "run", config)
    closed = tmp_path / "closed"
    Workdir(closed, config)
    closed.chmod(0o555)
    user = os.geteuid()
    if user == 0:  # whom no mode stops
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError, match=r"cannot be written|Permission denied"):
            Workdir(closed, config)
    finally:
        os.seteuid(user)


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match=r"cannot be written.*metrics.csv"):
        replace_file(tmp_path / "missing" / "metrics.csv", pathlib.Path.touch)
