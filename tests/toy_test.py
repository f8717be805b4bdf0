"""The toy problem in one process: Figure 1 in small, seeds, resuming."""

import numpy as np
import pytest

from configs import toy as toy_config
from examples import toy


def quick(**fields):
    config = toy_config.get_config()
    config.update(
        target=0.45,
        estimators=("reinforce", "relax"),
        seeds=3,
        steps=2000,
        log_every=1000,
        variance_draws=2000,
        jit_compile=False,
        verbose=0,
    )
    config.update(fields)
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    toy.train_and_evaluate(quick(), str(folder))
    return folder


def test_figure_one_in_small(workdir):
    rows = toy._read(workdir / "metrics.csv")
    assert len(rows) == 2 * 3 * 3
    last = {(row["estimator"], row["seed"]): row for row in rows if row["step"] == 2000}
    for seed in range(3):
        reinforce, relax = last["reinforce", seed], last["relax", seed]
        assert relax["loss"] < 0.2475  # 0.2525 at the start, 0.2025 at the optimum
        assert relax["log_variance"] < reinforce["log_variance"] - 2
    assert len({row["theta"] for row in last.values()}) == 6  # every seed its own run
    curves = toy._read(workdir / "curves.csv")
    assert {row["estimator"] for row in curves} == {"relax"}
    assert (workdir / "figures" / "toy.png").stat().st_size > 10_000


def test_killed_run_resumes_with_the_seeds_that_are_missing(workdir):
    metrics, curves = workdir / "metrics.csv", workdir / "curves.csv"
    whole = metrics.read_text(), curves.read_text(), (workdir / "results.json").read_text()
    # As if killed after the relaxation of the last seed was written, and before its rows were.
    metrics.write_text("".join(whole[0].splitlines(keepends=True)[:-3]))
    toy.train_and_evaluate(quick(), str(workdir))
    assert (metrics.read_text(), curves.read_text()) == whole[:2]
    assert (workdir / "results.json").read_text() == whole[2]


def test_summary_has_the_quartiles_of_the_last_step():
    rows = [
        {"estimator": "relax", "seed": seed, "step": step, "loss": loss, "log_variance": -loss}
        for seed, loss in enumerate([1.0, 2.0, 3.0, 4.0, 9.0])
        for step in (0, 10)
    ]
    curves = [
        {"estimator": "relax", "seed": seed, "u": u, "c": sign * u}
        for seed, sign in enumerate([1, 1, 1, -1, -1])
        for u in (0.25, 0.5, 0.75)
    ]
    values = toy.summary(rows, curves, 0.45)["estimators"]["relax"]
    assert values == {
        "seeds": 5,
        "loss_lower": 2.0,
        "loss_median": 3.0,
        "loss_upper": 4.0,
        "log_variance_median": -3.0,
        "relaxation_mean": 0.5,
        "relaxation_span": 0.5,
    }


def test_exact_loss():
    model = toy.build_model(quick(), "reinforce")
    assert np.isclose(toy.expected_loss(model, 0.45), 0.5 * 0.55**2 + 0.5 * 0.45**2)
    model.get_layer("b").kernel.assign([[np.log(3.0)]])
    assert np.isclose(toy.expected_loss(model, 0.45), 0.75 * 0.55**2 + 0.25 * 0.45**2)


def test_steps_that_rows_do_not_divide_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"multiple of.*Received: 2000 and 1500"):
        toy.train_and_evaluate(quick(log_every=1500), str(tmp_path))
