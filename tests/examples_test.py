"""The examples as a user runs them: one command, killed, resumed, and the same in the end."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from examples.runs import read_metrics

ROOT = pathlib.Path(__file__).parent.parent
QUICK = ["--config.verbose=0", "--config.jit_compile=False", "--config.steps_per_execution=10"]


def start(example, config, workdir, *overrides):
    command = [sys.executable, "-m", f"examples.{example}", f"--config=configs/{config}.py"]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *QUICK, *overrides],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run(*arguments):
    process = start(*arguments)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


def without_seconds(path):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(path)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


def test_vae_writes_its_results_and_improves(tmp_path, data_dir):
    overrides = ["--config.steps=600", "--config.log_every=200", f"--config.data_dir={data_dir}"]
    output = run("vae", "vae_digits", tmp_path, *overrides)
    assert "validation ELBO" in output
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dataset"] == "digits"
    rows = read_metrics(tmp_path / "metrics.csv")
    assert list(rows[0]) == ["step", "train_elbo", "validation_elbo", "b_second_moment", "seconds"]
    assert [row["step"] for row in rows] == [0, 200, 400, 600]
    assert rows[-1]["validation_elbo"] > rows[0]["validation_elbo"] + 2
    for figure in ("curves", "reconstructions", "prior_samples"):
        assert (tmp_path / "figures" / f"{figure}.png").stat().st_size > 5_000


def test_killed_vae_resumes_as_if_nothing_had_happened(tmp_path, data_dir):
    overrides = ["--config.steps=800", "--config.log_every=100", f"--config.data_dir={data_dir}"]
    run("vae", "vae_digits", tmp_path / "whole", *overrides)
    process = start("vae", "vae_digits", tmp_path / "killed", *overrides)
    while process.poll() is None and len(read_metrics(tmp_path / "killed" / "metrics.csv")) < 4:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    run("vae", "vae_digits", tmp_path / "killed", *overrides)
    whole, killed = (without_seconds(tmp_path / n / "metrics.csv") for n in ("whole", "killed"))
    assert len(whole) == len(killed) == 9
    for a, b in zip(whole, killed, strict=True):
        np.testing.assert_equal(a, b)


def test_another_configuration_does_not_overwrite_a_run(tmp_path, data_dir):
    overrides = ["--config.steps=100", "--config.log_every=100", f"--config.data_dir={data_dir}"]
    run("vae", "vae_digits", tmp_path, *overrides)
    process = start("vae", "vae_digits", tmp_path, *overrides, "--config.estimator=rebar")
    assert "differ in ['estimator']" in process.communicate()[0]
    assert process.returncode != 0


def test_damaged_checkpoint_is_named(tmp_path, data_dir):
    overrides = ["--config.steps=100", "--config.log_every=100", f"--config.data_dir={data_dir}"]
    run("vae", "vae_digits", tmp_path, *overrides)
    checkpoint = tmp_path / "checkpoints" / "vae.keras"
    damaged = bytearray(checkpoint.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    checkpoint.write_bytes(damaged)
    process = start("vae", "vae_digits", tmp_path, *overrides)
    assert "vae.keras is damaged" in process.communicate()[0]
    assert process.returncode != 0


@pytest.mark.skipif(
    not (pathlib.Path(os.environ.get("TFDS_DATA_DIR", "/nowhere")) / "mnist").exists(),
    reason="TFDS_DATA_DIR is not set or holds no mnist",
)
def test_vae_trains_on_mnist(tmp_path):
    overrides = ["--config.steps=400", "--config.log_every=200", "--config.iwae_samples=2"]
    run("vae", "vae_mnist", tmp_path, *overrides)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert rows[-1]["validation_elbo"] > rows[0]["validation_elbo"] + 20
