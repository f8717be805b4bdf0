"""The race: what is planned, timed and written, on files of a few rows."""

import csv
import math

import pytest

from configs import race as race_config
from configs import vae as vae_config
from examples import race, vae_models

CURVES = {
    ("linear1", "flip", "1e-3"): [-200.0, -130.0, -120.0],
    ("linear1", "flip", "3e-3"): [-200.0, -140.0, math.nan],
    ("linear1", "reinmax", "1e-3"): [-200.0, -140.0, -125.0],
}


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def stored(tmp_path):
    names = ("architecture", "estimator", "rate")
    write(
        tmp_path / "curves.csv",
        [
            {**dict(zip(names, entry, strict=True)), "step": 1000 * k, "validation_elbo": elbo}
            for entry, curve in CURVES.items()
            for k, elbo in enumerate(curve)
        ],
    )
    where = [{"architecture": "linear1", "estimator": name} for name in ("flip", "reinmax")]
    write(
        tmp_path / "times.csv",
        [{**w, "milliseconds": ms} for w, ms in zip(where, (2.0, 1.0), strict=True)],
    )
    write(tmp_path / "variances.csv", [{**where[0], "evaluations": 2, "variance": 40.0}])
    return tmp_path


def config():
    result = race_config.get_config()
    result.targets = {"linear1": (-160.0, -125.0)}
    return result


def test_page_ranks_by_seconds_to_the_last_target(stored):
    lines = [line for line in race.page(config(), stored).splitlines() if line.startswith("| `")]
    assert (
        lines
        == [
            "| `flip` | 1e-3 | 2.00 | 1 | 3 | -120.00 | 40 | 80 | 80 |",
            "| `reinmax` | 1e-3 | 1.00 | 1 | 2 | -125.00 | - | - | - |",
        ][::-1]
    )


def test_a_target_that_is_not_reached_takes_for_ever():
    curve = [(0, -200.0), (10, -150.0), (20, -100.0)]
    assert race.steps_to(curve, -125.0) == 15
    assert race.steps_to(curve, -99.0) == math.inf


def test_figure_is_drawn_from_stored_rows(stored):
    settings = race_config.get_config()
    with settings.unlocked():
        race.draw(settings, stored)
    assert (stored / "race.png").stat().st_size > 10_000


def test_runs_are_those_of_the_config_and_each_can_be_built(tmp_path):
    settings = race_config.get_config()
    runs = race.plan(settings, tmp_path)
    assert len(runs) == sum(len(estimators) for *_, estimators in settings.runs)
    for entry, run in runs.items():
        assert f"--config.estimator={entry.estimator}" in run.command
        chosen = race.settings(settings, entry)
        assert chosen.architecture in vae_models.ARCHITECTURES
        for layer in range(2):
            assert vae_models.build_estimator(chosen, layer) is not None
    for architecture, estimator in settings.frozen.items():
        assert any(entry[:2] == (architecture, estimator) for entry in runs)


def test_estimators_are_named_in_the_order_of_the_layers():
    settings = vae_config.get_config()
    settings.estimator = "midpoint+flip"
    assert [vae_models.build_estimator(settings, k).id for k in (0, 1)] == ["midpoint", "flip"]
    settings.estimator = "disarm"
    assert [vae_models.build_estimator(settings, k).id for k in (0, 1)] == ["disarm", "disarm"]
