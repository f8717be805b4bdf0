"""The race: seconds of one core that each estimator needs to a given validation ELBO on MNIST.

    taskset -c 0 python -m examples.race --config=configs/race.py --workdir=DIR

trains every estimator on four VAEs (`--stage=runs`; each run is `python -m examples.vae` in a
folder of its own, and the same command goes on after a kill), measures how long a step of each
takes, in turns in one process (`--stage=times`: leave the machine alone), and the variance of each
at a frozen model (`--stage=variances`). These write `curves.csv` (validation ELBO by step),
`times.csv` (milliseconds of a step) and `variances.csv`; `--stage=page` makes `race.md` and
`race.png` of the three:

    python -m examples.race --stage=page --config=configs/race.py --workdir=examples/results/race

Seconds are steps times the median time of a step, so that what else the machine was doing during a
run does not count.
"""

import csv
import itertools
import math
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import ml_collections
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from configs import vae as vae_config
from examples import figures, sweep, vae
from examples.checkpoints import Checkpoint
from examples.data import batches
from examples.runs import replace_file
from examples.stored import read_runs


class Entry(NamedTuple):
    """One run."""

    architecture: str
    estimator: str
    rate: str


Curves = dict[Entry, list[tuple[int, float]]]  # steps and validation ELBO
Table = dict[tuple[str, str], float]  # by architecture and estimator


def plan(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[Entry, sweep.Run]:
    """The runs of the race."""
    runs = {}
    for architecture, steps, rate, estimators in config.runs:
        settings = [f"steps={steps}", f"log_every={config.log_every}", "verbose=2"]
        for estimator in estimators:
            entry = Entry(architecture, estimator, rate)
            grid = ["architecture", "estimator", "learning_rate"]
            grid = [f"{field}={value}" for field, value in zip(grid, entry, strict=True)]
            planned = sweep.plan(
                "vae", ["configs/vae.py"], str(workdir), grid, settings, [config.seed]
            )
            runs[entry] = planned[0]
    return runs


def settings(config: ml_collections.ConfigDict, entry: Entry) -> ml_collections.ConfigDict:
    """What `examples.vae` is told in this run."""
    result = vae_config.get_config()
    result.architecture, result.estimator = entry.architecture, entry.estimator
    result.learning_rate = float(entry.rate)
    result.seed = config.seed
    return result


def run_all(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Executes the runs that are not complete and writes `curves.csv`."""
    runs = plan(config, workdir)
    failed = sweep.sweep(list(runs.values()), parallel=1)
    if failed:
        raise SystemExit(f"{len(failed)} runs failed: {', '.join(run.name for run in failed)}")
    rows = []
    for entry, run in runs.items():
        (trained,) = read_runs(run.folder)
        for row in trained.rows:
            of_step = {"step": int(row["step"]), "validation_elbo": row["validation_elbo"]}
            rows.append({**entry._asdict(), **of_step, "commit": trained.commits})
    _write(workdir / "curves.csv", rows)


def measure_times(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Times the step of all estimators of an architecture in turns and writes `times.csv`."""
    from benchmarks import timing  # with flags of its own

    images = vae.load_images(vae_config.get_config())
    rows = []
    for architecture, entries in _by_architecture(plan(config, workdir)).items():
        models = {e.estimator: vae.compiled_model(settings(config, e), images) for e in entries}
        data = batches(images.train, vae_config.get_config().batch_size, config.seed)
        times = timing.race(models, data, config.rounds, config.timed_steps)
        rows += [
            {"architecture": architecture, "estimator": name, "milliseconds": time.milliseconds}
            for name, time in times.items()
        ]
        _write(workdir / "times.csv", rows)


def measure_variances(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Freezes a trained model, lets each estimator adapt to it, and writes `variances.csv`."""
    from relax_tf.diagnostics import compare

    images = vae.load_images(vae_config.get_config())
    runs = plan(config, workdir)
    rows = []
    for architecture, entries in _by_architecture(runs).items():
        trained = next(e for e in entries if e.estimator == config.frozen[architecture])
        frozen = vae.compiled_model(settings(config, trained), images)
        Checkpoint(runs[trained].folder / "checkpoints" / "vae.keras").restore(frozen)
        by_name = {entry.estimator: entry for entry in entries}

        def build(name: str, by_name=by_name):
            return vae.compiled_model(settings(config, by_name[name]), images)

        x = images.validation[: config.variance_batch]
        result = compare(
            build,
            [name for name in by_name if name not in config.biased],
            x,
            x,
            num_draws=config.variance_draws,
            like=frozen,
            adapt_steps=config.adapt_steps,
            adapt_data=batches(images.train, vae_config.get_config().batch_size, config.seed + 1),
        )
        rows += [
            {
                "architecture": architecture,
                "estimator": name,
                "evaluations": result.evaluations[name],
                "variance": sum(by_layer.values()),
                "by_layer": " ".join(f"{layer}={v:.4g}" for layer, v in by_layer.items()),
            }
            for name, by_layer in result.variances.items()
        ]
        _write(workdir / "variances.csv", rows)


def best_rates(curves: Curves) -> dict[tuple[str, str], Entry]:
    """Of each architecture and estimator the run that ended highest."""
    best = {}
    for entry in curves:
        key = entry.architecture, entry.estimator
        if key not in best or _end(curves[entry]) > _end(curves[best[key]]):
            best[key] = entry
    return best


def steps_to(curve: list[tuple[int, float]], target: float) -> float:
    """Steps until the ELBO reaches the target, by linear interpolation; infinity if it does not."""
    for (before, low), (step, elbo) in itertools.pairwise(curve):
        if elbo >= target:
            return before + (step - before) * (target - low) / (elbo - low)
    return math.inf


def page(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> str:
    """`race.md`: for each architecture who is there first, and whose gradient varies least."""
    curves = _curves(workdir)
    times = _table(workdir / "times.csv", "milliseconds")
    variances = _table(workdir / "variances.csv", "variance")
    evaluations = _table(workdir / "variances.csv", "evaluations")
    best = best_rates(curves)
    sections = [_INTRODUCTION, *([_VARIANCES] if variances else []), "![ELBO by seconds](race.png)"]
    for architecture, targets in config.targets.items():
        lines = []
        for (where, estimator), entry in best.items():
            if where != architecture:
                continue
            time, variance = times[where, estimator], variances.get((where, estimator), math.nan)
            seconds = [steps_to(curves[entry], target) * time / 1e3 for target in targets]
            count = evaluations.get((where, estimator), math.nan)
            cells = [
                f"`{estimator}`",
                entry.rate,
                f"{time:.2f}",
                *(_cell(value, ".0f") for value in seconds),
                f"{_end(curves[entry]):.2f}",
            ]
            if variances:
                bought = (variance, variance * count, variance * time)
                cells += [_cell(value, ".3g") for value in bought]
            lines.append((*(-value for value in seconds[::-1]), _end(curves[entry]), cells))
        lines.sort(key=lambda line: line[:-1], reverse=True)
        head = ["estimator", "rate", "ms", *(f"s to {t:g}" for t in targets), "ELBO at the end"]
        head += ["variance", "x evaluations", "x ms"] if variances else []
        steps = max(step for e in curves if e.architecture == architecture for step, _ in curves[e])
        rows = [head, ["---"] * len(head), *(line[-1] for line in lines)]
        table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        sections.append(f"## {architecture}, {steps:,} steps\n\n{table}".replace(",000", " 000"))
    return "\n\n".join(sections) + "\n"


def draw(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """`race.png`: a panel for each architecture, a line for each estimator at its best rate."""
    curves, times = _curves(workdir), _table(workdir / "times.csv", "milliseconds")
    lines = {
        (architecture, estimator): [
            (step * times[architecture, estimator] / 1e3, elbo) for step, elbo in curves[entry][1:]
        ]
        for (architecture, estimator), entry in best_rates(curves).items()
    }
    targets = {architecture: min(values) for architecture, values in config.targets.items()}
    figures.race(workdir / "race.png", lines, targets, config.biased)


_INTRODUCTION = """# The race on MNIST

    taskset -c 0 python -m examples.race --config=configs/race.py --workdir=DIR

Batches of 24, Adam, rate and steps as in the tables, seed 0, static binarisation; validation ELBO
in nats on 10 000 images. Each estimator at the better of the rates that `configs/race.py` tries
with it. *ms*: the median time of a step with XLA on one core, all estimators of a model in turns in
one process; *s to*: seconds of training until the ELBO is reached, steps times that. `a+b`
is `a` at the first stochastic layer and `b` at the second. Dashed: biased estimators. The
commit of each run stands in curves.csv."""

_VARIANCES = """*variance*: of the gradient at theta, summed over units and layers, mean over 100
validation images, at one model that is frozen after its run (`config.frozen`) and to which each
estimator's own variables have adapted for 10 000 steps; times the evaluations of the cost, and
times the milliseconds of a step, it says what one evaluation and one second buy. Biased estimators
have none here."""


def _by_architecture(entries) -> dict[str, list[Entry]]:
    """The entries of each architecture, one (the first) for each estimator."""
    first = {}
    for entry in entries:
        first.setdefault(entry.architecture, {}).setdefault(entry.estimator, entry)
    return {architecture: list(found.values()) for architecture, found in first.items()}


def _curves(workdir: pathlib.Path) -> Curves:
    curves = {}
    for row in _read(workdir / "curves.csv"):
        entry = Entry(row["architecture"], row["estimator"], row["rate"])
        curves.setdefault(entry, []).append((int(row["step"]), float(row["validation_elbo"])))
    return curves


def _table(path: pathlib.Path, column: str) -> Table:
    return {(row["architecture"], row["estimator"]): float(row[column]) for row in _read(path)}


def _read(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows of a file; none if that stage is still to come."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(path: pathlib.Path, rows: list[dict]) -> None:
    def write(path: pathlib.Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    replace_file(path, write)


def _end(curve: list[tuple[int, float]]) -> float:
    return curve[-1][1] if np.isfinite(curve[-1][1]) else -math.inf


def _cell(value: float, style: str) -> str:
    return f"{value:{style}}" if np.isfinite(value) else "-"


def _write_page(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    replace_file(workdir / "race.md", lambda path: path.write_text(page(config, workdir)))
    draw(config, workdir)


STAGES: dict[str, Callable] = {
    "runs": run_all,
    "times": measure_times,
    "variances": measure_variances,
    "page": _write_page,
}


def main(argv):
    del argv
    workdir = pathlib.Path(_WORKDIR.value).absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    for stage in _STAGE.value or STAGES:
        STAGES[stage](_CONFIG.value, workdir)
    print(f"{workdir / 'race.md'}, {workdir / 'race.png'}")


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", "configs/race.py", "The race.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Its folder.", required=True)
    _STAGE = flags.DEFINE_multi_enum("stage", [], list(STAGES), "What to do; default: all.")
    app.run(main)
