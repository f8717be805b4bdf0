"""The sweep tool with an example that takes no time, and the tables of stored results."""

import json
import pathlib
import re
import shlex
import shutil
import sys
import textwrap

import pytest
from absl import flags
from ml_collections import config_flags

from configs import vae_table1
from examples import stored, sweep, table

FAKE = """
    import json, pathlib, sys
    options = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
    folder = pathlib.Path(options["workdir"])
    if options["config.rate"] == "bad" and not (folder / "repaired").exists():
        sys.exit("no such rate")
    with (folder / "starts.txt").open("a") as file:
        file.write("start\\n")
    rows = [f"{step},{step * float(options['config.rate'].replace('bad', '3'))},{step}"
            for step in (0, 1, 2)]
    (folder / "metrics.csv").write_text("\\n".join(["step,score,seconds", *rows]) + "\\n")
"""


@pytest.fixture
def fake_example(tmp_path, monkeypatch):
    """`examples.fake` in a root of its own, where sweeps start their processes."""
    folder = tmp_path / "root" / "examples"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()  # or another `examples` on PYTHONPATH comes first
    (folder / "fake.py").write_text(textwrap.dedent(FAKE))
    monkeypatch.setattr(sweep, "_ROOT", tmp_path / "root")
    return tmp_path / "runs"


def starts(run):
    return len((run.folder / "starts.txt").read_text().splitlines())


def test_plan_is_the_product_of_configs_grid_and_seeds(tmp_path):
    runs = sweep.plan(
        "vae",
        ["configs/a.py", "configs/b.py:x-y"],
        str(tmp_path),
        ["rate=1,2"],
        ["steps=5"],
        [0, 7],
    )
    assert [run.name for run in runs[:4]] == [
        f"a_rate={r}_seed={s}" for r in (1, 2) for s in (0, 7)
    ]
    assert runs[-1].group == "b_x-y_rate=2"
    assert runs[-1].command == [
        "-m",
        "examples.vae",
        "--config=configs/b.py:x-y",
        f"--workdir={tmp_path / 'b_x-y_rate=2_seed=7'}",
        "--config.steps=5",
        "--config.rate=2",
        "--config.seed=7",
    ]
    with pytest.raises(ValueError, match=r"FIELD=VALUE. Received: 'rate'"):
        sweep.plan("vae", ["configs/a.py"], str(tmp_path), ["rate"], [], [0])
    with pytest.raises(ValueError, match=r"share a folder"):
        sweep.plan("vae", ["configs/a.py", "other/a.py"], str(tmp_path), [], [], [0])


def test_sweep_skips_complete_runs_and_repeats_failed_ones(fake_example, capsys):
    arguments = ("fake", ["configs/c.py"], str(fake_example), ["rate=1,bad,2"])
    runs = sweep.plan(*arguments, [], [0])
    assert sweep.sweep(runs, parallel=2) == [runs[1]]
    assert "no such rate" in (runs[1].folder / "log.txt").read_text()
    (runs[1].folder / "repaired").touch()
    assert sweep.sweep(runs, parallel=1) == []
    assert [starts(run) for run in runs] == [1, 1, 1]
    assert f"{runs[0].name}: complete, skipped" in capsys.readouterr().out
    longer = sweep.plan(*arguments, ["steps=9"], [0])  # other settings are another command
    assert sweep.sweep(longer[:1], parallel=1) == []
    assert starts(longer[0]) == 2
    sweep.draw(fake_example / "comparison.png", runs, "score")
    assert (fake_example / "comparison.png").stat().st_size > 10_000


def store(folder, row, train, steps=2_000_000, results=None, **fields):
    """A stored run whose training ELBO goes through the values `train`."""
    folder.mkdir(parents=True)
    config = vae_table1.get_config(row)
    config.update(fields)
    (folder / "config.json").write_text(config.to_json_best_effort())
    lines = ["step,train_elbo,validation_elbo,seconds", "0,nan,-300,0"]
    lines += [
        f"{steps * (k + 1) // len(train)},{value},{value - 1},{3600 * (k + 1)}"
        for k, value in enumerate(train)
    ]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    (folder / "provenance.json").write_text(json.dumps([{"command": "x", "commit": "abc123"}]))
    if results:
        (folder / "results.json").write_text(json.dumps(results))


def test_table_tells_what_is_reached_and_what_falls_short(tmp_path):
    bounds = {
        "samples": 100,
        "best": {"step": 1_000_000, "elbo": -113.0, "bound": -109.87},
        "last": {"step": 2_000_000, "elbo": -113.2, "bound": -109.9},
    }
    store(tmp_path / "good", "mnist-linear1-relaxed_rebar", [-111.0, -111.1], results=bounds)
    store(tmp_path / "short", "mnist-linear1-rebar", [-120, -113.91], steps=400_000)
    store(tmp_path / "small", "omniglot-linear1-rebar", [-130], splits=("small1", "small2"))
    store(tmp_path / "sweeps" / "fast", "mnist-linear1-rebar", [-150], learning_rate=5e-3)
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "config.json").write_text('{"target": 0.499}')
    assert len(table.write(tmp_path)) == 4
    page = (tmp_path / "vae.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("| `relaxed_rebar`"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:10] == [
        "2 000 000",
        "0.001",
        "0",
        "-111.00",
        "-111.22",
        "+0.22",
        "-112.00",
        "-109.87",
        "2.0",
    ]
    assert "abc123" in cells
    assert "`relaxed_rebar` after 2 000 000 steps: reaches the paper's -111.22 (+0.22)" in page
    assert "`rebar` after 400 000 steps: **2.25 nats short** of -111.66, at 20% of" in page
    assert "`rebar` after 2 000 000 steps: no figure in the paper" in page
    short_runs = page[page.index("## Short runs") :]
    assert "-150.00" in short_runs
    assert "-150.00" not in page[: page.index("## Short runs")]
    for name in ("mnist_linear1", "omniglot_linear1"):
        assert (tmp_path / f"vae_{name}.png").stat().st_size > 10_000
    assert table.write(tmp_path)
    assert (tmp_path / "vae.md").read_text() == page


def test_stored_pages_are_what_the_command_makes_of_the_stored_runs(tmp_path):
    examples = pathlib.Path(table.__file__).parent
    stored, copy = examples / "results", tmp_path / "results"
    shutil.copytree(stored, copy, ignore=shutil.ignore_patterns("*.keras", "*.png"))
    (copy / "vae.md").unlink()
    (copy / "toy" / "results.json").unlink()
    page = (examples / "README.md").read_text()
    emptied = table.fill(table.fill(page, "vae", "nothing"), "toy", "nothing")
    (tmp_path / "README.md").write_text(emptied)
    assert len(table.write(copy, tmp_path / "README.md")) >= 7
    assert emptied != page == (tmp_path / "README.md").read_text()
    for name in ("vae.md", "toy/results.json"):
        assert (copy / name).read_text() == (stored / name).read_text()
    for figure in stored.glob("vae_*_*.png"):
        assert (copy / figure.name).stat().st_size > 10_000
    for link in re.findall(r"\]\((results/[^)]*)\)", page):
        assert (examples / link).exists(), link
    with pytest.raises(ValueError, match="the marks of 'vae' once"):
        table.fill(emptied + emptied, "vae", "")


def test_printed_command_repeats_the_run(tmp_path, monkeypatch):
    fields = {"learning_rate": 1e-4, "hidden_units": (200,) * 4, "seed": 3, "log_every": 1000}
    splits = ("small1", "small2")
    store(tmp_path / "run", "omniglot-nonlinear-disarm", [-1], 5000, splits=splits, **fields)
    (run,) = stored.read_runs(tmp_path)
    words = shlex.split(stored.command(run))
    assert words[:3] == ["python", "-m", "examples.vae"]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    monkeypatch.setattr(sys, "argv", words[2:])  # where overrides are looked for
    values(sys.argv)
    repeated = json.loads(values.config.to_json_best_effort())
    assert repeated == {**run.config, "steps": 5000}
