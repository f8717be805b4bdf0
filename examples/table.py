"""Regenerates the tables and figures of the VAE and toy experiments from stored results.

    python -m examples.table

reads `examples/results/**/{metrics.csv, config.json, results.json, provenance.json}` and writes

    examples/results/vae.md                         every VAE run, and the commands
    examples/results/vae_DATASET_ARCHITECTURE.png   their curves
    examples/results/TOY/toy.png, results.json      Figure 1 of each toy run
    examples/README.md                              what stands between the marks in it

`--results=DIR` does the same for another folder, without a README, also for the workdirs of runs
that are going on. Runs below a folder named `sweeps` are short ones by which settings were chosen;
they have a table of their own.
"""

import importlib
import json
import pathlib
import re
import shlex
from collections.abc import Callable
from typing import Any

from absl import app, flags

from examples import figures, toy
from examples.stored import PAPER_STEPS, Run, command, overrides, read_runs

_EXAMPLES = pathlib.Path(__file__).parent


def markdown(runs: list[Run]) -> str:
    """The page with all tables."""
    finals = [run for run in runs if not run.is_sweep]
    sweeps = [run for run in runs if run.is_sweep]
    problems = list(dict.fromkeys(run.problem for run in finals))
    parts = [_HEAD]
    for problem in sorted(problems):
        chosen = sorted((run for run in finals if run.problem == problem), key=_by_best)
        parts += [f"## {problem[0]}, {problem[1]}", _table(chosen, _SETTINGS | _REACHED | _ORIGIN)]
        parts.append("\n".join(_verdict(run) for run in chosen))
        parts.append(f"![curves](vae_{problem[0]}_{problem[1]}.png)")
    if finals:
        parts += ["## Commands", _commands(finals)]
    if sweeps:
        parts += ["## Short runs that chose the settings", _sweep_table(sweeps)]
    return "\n\n".join(parts) + "\n"


_HEAD = """# Discrete VAEs: results

Written by `python -m examples.table` from the stored runs; do not edit.

All figures are in nats. The training ELBO is the mean of one-sample estimates over the steps
between two rows of `metrics.csv`, best over training (`concrete` and `vimco`: of what they
optimise, which is no ELBO). The validation ELBO is a one-sample estimate at the end of such a
stretch, best over training. The bound is the importance-weighted one on the validation images, at
the checkpoint with the best validation ELBO. Images are binarised once, by `static_bernoulli`
(where a run has another binarisation, its command says so); the paper's code reads a file that is
named after Salakhutdinov's images, which are binarised so too. The paper trained 2 000 000 steps.

The paper's nonlinear figures are of two models. Those of NVIL, MuProp and one REBAR (-101.1) are
quoted from Tucker et al. (2017), whose tanh layers have 200 units: `nonlinear`. Its own REBAR
(-83.02) and RELAX (-79.49) are of its published code, which passes the number of pixels for the
width of the decoder's tanh layers: `nonlinear_wide`, 784 units."""


def _by_best(run: Run) -> float:
    return -run.best("train_elbo")


def _by_problem(run: Run) -> tuple:
    return run.problem, _by_best(run)


def _thousands(number: int) -> str:
    return f"{number:,}".replace(",", " ")


Columns = dict[str, Callable[[Run], Any]]

_PROBLEM: Columns = {
    "dataset": lambda run: run.problem[0],
    "architecture": lambda run: run.problem[1],
}
_SETTINGS: Columns = {
    "estimator": lambda run: f"`{run.config['estimator']}`",
    "steps": lambda run: _thousands(run.last["step"]),
    "rate": lambda run: _rate(run),
    "seed": lambda run: run.config["seed"],
}
_REACHED: Columns = {
    "training ELBO": lambda run: f"{run.best('train_elbo'):.2f}",
    "paper": lambda run: "" if run.paper is None else f"{run.paper:.2f}",
    "difference": lambda run: (
        "" if run.paper is None else f"{run.best('train_elbo') - run.paper:+.2f}"
    ),
    "validation ELBO": lambda run: f"{run.best('validation_elbo'):.2f}",
    "IW bound": lambda run: _bound(run),
}
_ORIGIN: Columns = {
    "hours": lambda run: f"{run.last['seconds'] / 3600:.1f}",
    "commit": lambda run: run.commits,
    "run": lambda run: f"[{run.name}]({run.name}/metrics.csv)",
}
_SHORT: Columns = {
    "control variate's": lambda run: f"{run.config['control_variate_learning_rate']:g}",
    "training ELBO, mean over the last": lambda run: (
        f"{run.last['train_elbo']:.2f}, {_thousands(run.last['step'] - run.rows[-2]['step'])} steps"
    ),
    "validation ELBO": lambda run: f"{run.last['validation_elbo']:.2f}",
    "run": lambda run: f"[{pathlib.Path(run.name).name}]({run.name}/metrics.csv)",
}


def _rate(run: Run) -> str:
    """The learning rate; of one that decays, also the last."""
    first, fraction = run.config["learning_rate"], run.config.get("decay_to", 1.0)
    return f"{first:g}" if fraction == 1 else f"{first:g} to {first * fraction:g}"


def _table(runs: list[Run], columns: Columns) -> str:
    rows = [[column(run) for column in columns.values()] for run in runs]
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _bound(run: Run) -> str:
    """The bound at the best checkpoint; with its step, if the run has gone on since."""
    if "best" not in run.results:
        return ""
    bound, step = f"{run.results['best']['bound']:.2f}", run.results["last"]["step"]
    if run.results["samples"] != 100:
        bound += f" (K = {run.results['samples']})"
    return bound if step == run.last["step"] else f"{bound} (at {_thousands(step)})"


def _verdict(run: Run) -> str:
    """One sentence that says whether the paper's figure is reached."""
    name, reached = run.config["estimator"], run.best("train_elbo")
    at = f"after {_thousands(run.last['step'])} steps"
    if run.paper is None:
        return f"- `{name}` {at}: no figure in the paper for this data and estimator."
    if reached >= run.paper:
        return f"- `{name}` {at}: reaches the paper's {run.paper:.2f} ({reached - run.paper:+.2f})."
    steps = run.last["step"]
    share = "" if steps >= PAPER_STEPS else f", at {steps / PAPER_STEPS:.0%} of the paper's steps"
    return f"- `{name}` {at}: **{run.paper - reached:.2f} nats short** of {run.paper:.2f}{share}."


def _commands(runs: list[Run]) -> str:
    lines = [f"# {run.name}\n{command(run)}" for run in runs]
    return "```sh\n" + "\n".join(lines) + "\n```"


def _sweep_table(runs: list[Run]) -> str:
    def order(run):
        return run.problem, run.config["estimator"], run.last["step"], -run.last["train_elbo"]

    return _table(sorted(runs, key=order), _PROBLEM | _SETTINGS | _SHORT)


def vae_section(runs: list[Run]) -> str:
    """For a README beside the results' folder: what every architecture has reached, and curves."""
    finals = sorted((run for run in runs if not run.is_sweep), key=_by_problem)
    table = _table(finals, _PROBLEM | _SETTINGS | _REACHED)
    names = dict.fromkeys("_".join(run.problem) for run in finals)
    return "\n\n".join([table, *(f"![{name}](results/vae_{name}.png)" for name in names)])


def toy_section(folder: pathlib.Path) -> str:
    """The same for a stored toy run, whose figure and summary it makes anew."""
    config = json.loads((folder / "config.json").read_text())
    target, steps = config["target"], config["steps"]
    results = toy.report(folder, folder / "toy.png", target)
    base = importlib.import_module("configs.toy").get_config()
    changed = overrides(config, base, {"target": target, "seeds": config["seeds"]})
    words = ["python", "-m", "examples.toy", "--config=configs/toy.py", "--workdir=DIR"]
    lines = [
        f"| estimator, t = {target} | `E[(b - t)^2]` after {_thousands(steps)} steps "
        f"(optimum {results['optimum']:.5f}) | log-variance of the gradient |",
        "|---|---|---|",
    ]
    for estimator, values in results["estimators"].items():
        median, lower, upper = (values[f"loss_{name}"] for name in ("median", "lower", "upper"))
        lines.append(
            f"| `{estimator}` | {median:.5f} ({lower:.5f} to {upper:.5f}) "
            f"| {values['log_variance_median']:.2f} |"
        )
    figure = f"![Figure 1 at t = {target}](results/{folder.name}/toy.png)"
    return "\n\n".join([f"`{shlex.join([*words, *changed])}`:", "\n".join(lines), figure])


def _toy_runs(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders of toy runs, those of the highest target first."""
    targets = {
        file.parent: json.loads(file.read_text()).get("target")
        for file in sorted(folder.glob("*/config.json"))
        if (file.parent / "curves.csv").exists()
    }
    return sorted(targets, key=lambda run: -targets[run])


def fill(page: str, name: str, text: str) -> str:
    """The page with `text` between its marks `<!-- NAME: ... -->` and `<!-- end of NAME -->`."""
    marks = re.compile(rf"(<!-- {name}:[^>]*-->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if len(marks.findall(page)) != 1:
        raise ValueError(f"the page must have the marks of {name!r} once.")
    return marks.sub(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", page)


def write(folder: pathlib.Path, readme: pathlib.Path | None = None) -> list[Run]:
    """Writes the pages and the figures, and returns the VAE runs that they show."""
    runs = read_runs(folder)
    (folder / "vae.md").write_text(markdown(runs))
    finals = [run for run in runs if not run.is_sweep]
    for problem in dict.fromkeys(run.problem for run in finals):
        curves = [(_label(run), run.rows) for run in finals if run.problem == problem]
        figures.comparison(
            folder / f"vae_{problem[0]}_{problem[1]}.png",
            curves,
            ["train_elbo", "validation_elbo"],
            ", ".join(problem),
        )
    toys = [toy_section(run) for run in _toy_runs(folder)]
    if readme is not None:
        page = fill(readme.read_text(), "vae", vae_section(runs))
        readme.write_text(fill(page, "toy", "\n\n".join(toys)))
    return runs


def _label(run: Run) -> str:
    return f"{run.config['estimator']}, rate {_rate(run)}"


def main(argv):
    del argv
    folder = pathlib.Path(_RESULTS.value)
    is_stored = folder.resolve() == (_EXAMPLES / "results").resolve()
    runs = write(folder, _EXAMPLES / "README.md" if is_stored else None)
    print(f"{len(runs)} VAE runs. Wrote {folder / 'vae.md'} and the figures.")


if __name__ == "__main__":
    _RESULTS = flags.DEFINE_string("results", str(_EXAMPLES / "results"), "Folder with the runs.")
    app.run(main)
