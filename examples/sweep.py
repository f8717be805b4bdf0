"""Runs an example for several configs, settings and seeds, and draws the comparison.

    python -m examples.sweep --example=vae --workdir=DIR \\
        --config=configs/vae_digits.py --grid=estimator=rebar,relaxed_rebar \\
        --grid=learning_rate=1e-3,3e-4 --set=steps=10000 --seed=0 --seed=1 --parallel=2

One run for each combination of `--config` (may be repeated), of the values of each `--grid`, and of
`--seed`; `--set` holds for all. Each is `python -m examples.EXAMPLE` in a process of its own with a
folder of its own below `DIR`, where `log.txt` has what it printed and `done.json` the command, once
it is complete. Complete runs are skipped, others resume: the same command goes on after a kill.
`DIR/comparison.png` shows the metric of all of them by step and by wall-clock.
"""

import itertools
import json
import pathlib
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from absl import app, flags

from examples import figures
from examples.metrics import read_metrics
from examples.runs import replace_file

_ROOT = pathlib.Path(__file__).parent.parent


class Run(NamedTuple):
    """One run of a sweep."""

    name: str  # of its folder; without the seed, of its group
    group: str
    folder: pathlib.Path
    command: list[str]

    @property
    def done(self) -> pathlib.Path:
        return self.folder / "done.json"

    def is_complete(self) -> bool:
        return self.done.exists() and json.loads(self.done.read_text()) == self.command


def plan(
    example: str,
    configs: list[str],
    workdir: str,
    grid: list[str],
    settings: list[str],
    seeds: list[int],
) -> list[Run]:
    """The runs of a sweep, in order.

    Args:
        example: `"vae"` for `examples/vae.py`.
        configs: such as `"configs/vae_digits.py"`, with `:ARGUMENT` where the config takes one.
        workdir: of the sweep.
        grid: `"FIELD=VALUE,VALUE"` each.
        settings: `"FIELD=VALUE"` each.
        seeds: of the runs.

    Raises:
        ValueError: if a grid or a setting has no `=`, or two runs would share a folder.
    """
    for argument in [*grid, *settings]:
        if "=" not in argument:
            raise ValueError(f"expected FIELD=VALUE. Received: {argument!r}")
    fields = [argument.split("=", 1)[0] for argument in grid]
    values = [argument.split("=", 1)[1].split(",") for argument in grid]
    runs = []
    for config, *point in itertools.product(configs, *values):
        chosen = [f"{field}={value}" for field, value in zip(fields, point, strict=True)]
        path, _, argument = config.partition(":")
        group = "_".join(filter(None, [pathlib.Path(path).stem, argument, *chosen]))
        for seed in seeds:
            name = f"{group}_seed={seed}"
            folder = pathlib.Path(workdir).absolute() / name
            overrides = [f"--config.{item}" for item in [*settings, *chosen, f"seed={seed}"]]
            command = ["-m", f"examples.{example}", f"--config={config}", f"--workdir={folder}"]
            runs.append(Run(name, group, folder, [*command, *overrides]))
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"two runs would share a folder. Received the runs: {names}")
    return runs


def execute(run: Run) -> int:
    """Runs it, unless it is complete, and returns the exit status."""
    if run.is_complete():
        print(f"{run.name}: complete, skipped", flush=True)
        return 0
    run.folder.mkdir(parents=True, exist_ok=True)
    print(f"{run.name}: python {shlex.join(run.command)}", flush=True)
    with (run.folder / "log.txt").open("a") as log:
        status = subprocess.run(
            [sys.executable, *run.command], cwd=_ROOT, stdout=log, stderr=log, check=False
        ).returncode
    if status == 0:
        text = json.dumps(run.command, indent=2) + "\n"
        replace_file(run.done, lambda path: path.write_text(text))
    print(f"{run.name}: {'complete' if status == 0 else f'FAILED, see {log.name}'}", flush=True)
    return status


def sweep(runs: list[Run], parallel: int) -> list[Run]:
    """Executes the runs, some at a time, and returns those that failed."""
    with ThreadPoolExecutor(parallel) as pool:
        return [run for run, status in zip(runs, pool.map(execute, runs), strict=True) if status]


def draw(path: pathlib.Path, runs: list[Run], metric: str) -> None:
    """The metric of every run that has one, by step and by wall-clock."""
    curves = [(run.group, read_metrics(run.folder / "metrics.csv")) for run in runs]
    figures.comparison(path, [(group, rows) for group, rows in curves if rows], [metric])


def main(argv):
    del argv
    runs = plan(_EXAMPLE.value, _CONFIG.value, _WORKDIR.value, _GRID.value, _SET.value, _SEED.value)
    failed = sweep(runs, _PARALLEL.value)
    figure = pathlib.Path(_WORKDIR.value) / "comparison.png"
    draw(figure, runs, _METRIC.value)
    for run in runs:
        if rows := read_metrics(run.folder / "metrics.csv"):
            last = rows[-1]
            print(f"{run.name}: {_METRIC.value} {last[_METRIC.value]:.4f} at step {last['step']}")
    print(f"{len(runs) - len(failed)} of {len(runs)} runs complete. Comparison in {figure}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    _EXAMPLE = flags.DEFINE_string("example", "vae", "Name of the example, examples/NAME.py.")
    _CONFIG = flags.DEFINE_multi_string("config", None, "Config of the runs.", required=True)
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep.", required=True)
    _GRID = flags.DEFINE_multi_string("grid", [], "FIELD=VALUE,VALUE: one run for each value.")
    _SET = flags.DEFINE_multi_string("set", [], "FIELD=VALUE for all runs.")
    _SEED = flags.DEFINE_multi_integer("seed", [0], "Seed of the runs.")
    _PARALLEL = flags.DEFINE_integer("parallel", 1, "Runs at a time.", lower_bound=1)
    _METRIC = flags.DEFINE_string("metric", "validation_elbo", "Column of metrics.csv to draw.")
    app.run(main)
