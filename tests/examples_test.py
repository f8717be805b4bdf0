"""The examples as a user runs them: one command, killed, resumed, and the same in the end."""

import csv
import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from examples import workshop
from examples.metrics import read_metrics
from tests import programs

QUICK = ["--config.verbose=0", "--config.jit_compile=False", "--config.steps_per_execution=10"]


def start(example, config, workdir, *overrides):
    return programs.start(example, config, workdir, *QUICK, *overrides)


def run(*arguments):
    return programs.finish(start(*arguments))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    """A VAE's run, the overrides of its command, and what it printed."""
    overrides = ["--config.steps=600", "--config.log_every=100", f"--config.data_dir={data_dir}"]
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, overrides, run("vae", "vae_digits", workdir, *overrides)


def test_vae_writes_its_results_and_improves(finished):
    workdir, _, output = finished
    assert "validation ELBO" in output
    config = json.loads((workdir / "config.json").read_text())
    assert config["dataset"] == "digits"
    rows = read_metrics(workdir / "metrics.csv")
    assert list(rows[0]) == ["step", "train_elbo", "validation_elbo", "b_second_moment", "seconds"]
    assert [row["step"] for row in rows] == list(range(0, 700, 100))
    assert rows[-1]["validation_elbo"] > rows[0]["validation_elbo"] + 2
    for figure in ("curves", "reconstructions", "prior_samples"):
        assert (workdir / "figures" / f"{figure}.png").stat().st_size > 5_000


def test_another_configuration_does_not_overwrite_a_run(finished):
    workdir, overrides, _ = finished
    program = start("vae", "vae_digits", workdir, *overrides, "--config.estimator=rebar")
    assert "differ in ['estimator']" in program.output()
    assert program.poll() == 1


def test_damaged_checkpoint_is_named(finished, tmp_path):
    workdir, overrides, _ = finished
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    checkpoint = tmp_path / "checkpoints" / "vae.keras"
    damaged = bytearray(checkpoint.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    checkpoint.write_bytes(damaged)
    program = start("vae", "vae_digits", tmp_path, *overrides)
    assert "vae.keras is damaged" in program.output()
    assert program.poll() == 1


def test_black_box_trains_resumes_and_collects(tmp_path):
    overrides = ["--config.log_every=100", "--config.num_seeds=1", "--config.variance_draws=20"]
    overrides.append("--config.estimators=('reinforce', 'relax')")
    run("black_box", "black_box", tmp_path, *overrides, "--config.steps=200")
    run("black_box", "black_box", tmp_path, *overrides, "--config.steps=400")
    rows = {
        name: read_metrics(tmp_path / f"{name}-0" / "metrics.csv")
        for name in ("reinforce", "relax")
    }
    assert [row["step"] for row in rows["relax"]] == [0, 100, 200, 300, 400]
    assert rows["relax"][-1]["hours"] < rows["relax"][0]["hours"] - 1
    assert rows["relax"][-1]["log_variance"] < rows["reinforce"][-1]["log_variance"] - 2
    assert (tmp_path / "figures" / "black_box.png").stat().st_size > 10_000
    combined = (tmp_path / "metrics.csv").read_text().splitlines()
    assert combined[0] == "estimator,seed,step,hours,log_variance,seconds"
    assert len(combined) == 1 + 2 * 5


def test_schedule_of_a_day_worked_out_by_hand():
    durations = np.array([1.0, 2.0, 1.0, 3.0])  # colours 0, 1, 2, 0
    everything_first = workshop.schedule(durations, np.zeros(4))
    assert everything_first == 1 + 0.5 + 2 + 0.5 + 1 + 0.5 + 3
    # First machine: jobs 0 and 3, one colour. Second: jobs 1 and 2 at 1.5 times their hours.
    assert workshop.schedule(durations, np.array([0, 1, 1, 0])) == max(4, 3 + 0.5 + 1.5)
    batch = workshop.schedule(durations, np.array([[0, 0, 0, 0], [0, 1, 1, 0]]))
    np.testing.assert_allclose(batch, [8.5, 5.0])
    assert workshop.best_schedules(durations[np.newaxis]) == [5.0]


FIVE_COMPARED = """
from configs import variance

def get_config():
    config = variance.get_config()
    names = ("reinforce", "nvil", "disarm", "rebar", "relaxed_rebar")
    config.compared = {name: config.compared[name] for name in names}
    return config
"""


def test_variance_table_of_a_frozen_vae(tmp_path, data_dir):
    (tmp_path / "five.py").write_text(FIVE_COMPARED)
    overrides = ["--config.steps=200", "--config.log_every=100", "--config.adapt_steps=200"]
    overrides += ["--config.variance_draws=100", f"--config.data_dir={data_dir}"]
    output = run("variance", tmp_path / "five", tmp_path, *overrides)
    lines = (tmp_path / "variance.csv").read_text().splitlines()
    assert lines[0] == "estimator,evaluations,layer,variance,log_variance"
    table = {row["estimator"]: row for row in csv.DictReader(lines)}
    assert "relaxed_rebar" in output
    assert (table["disarm"]["evaluations"], table["nvil"]["evaluations"]) == ("2", "1")
    assert float(table["rebar"]["variance"]) < float(table["reinforce"]["variance"]) / 2
    assert (tmp_path / "figures" / "variance.png").stat().st_size > 10_000


@pytest.mark.slow
def test_categorical_vae_improves(tmp_path, data_dir):
    overrides = ["--config.steps=800", "--config.log_every=200", f"--config.data_dir={data_dir}"]
    run("vae", "vae_categorical", tmp_path, *overrides, "--config.iwae_samples=2")
    rows = read_metrics(tmp_path / "metrics.csv")
    assert rows[-1]["validation_elbo"] > rows[0]["validation_elbo"] + 1


@pytest.mark.slow
@pytest.mark.skipif(
    not (pathlib.Path(os.environ.get("TFDS_DATA_DIR", "/nowhere")) / "mnist").exists(),
    reason="TFDS_DATA_DIR is not set or holds no mnist",
)
def test_vae_trains_on_mnist(tmp_path):
    overrides = ["--config.steps=200", "--config.log_every=200", "--config.iwae_samples=2"]
    run("vae", "vae_mnist", tmp_path, *overrides)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert rows[-1]["validation_elbo"] > rows[0]["validation_elbo"] + 20
