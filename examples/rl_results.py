"""Figures and tables of the reinforcement-learning runs, over seeds, from small stored files.

    python -m examples.rl_results

draws `rl.png` and writes `table.md` in every `examples/results/rl_*/` from what lies there: each
run's `METHOD-SEED.csv` (rewards, and log-variances where measured) and `METHOD-SEED.json` (summary,
configuration, command and commit). To store runs with workdirs `DIR/rl_TASK/METHOD-SEED` first:

    python -m examples.rl_results --collect=DIR
"""

import json
import pathlib

import numpy as np
from absl import app, flags

from examples import figures
from examples.metrics import read_metrics
from examples.rl_log import write_rows

RESULTS = pathlib.Path(__file__).parent / "results"
_COLLECT = flags.DEFINE_string("collect", None, "Folder of workdirs to store the results of.")
_RESULTS = flags.DEFINE_string("results", str(RESULTS), "Folder of stored results.")


def collect(runs: pathlib.Path, results: pathlib.Path) -> None:
    """Stores the finished runs `runs/TASK/METHOD-SEED` as `results/TASK/METHOD-SEED.{csv,json}`."""
    for file in sorted(runs.glob("rl_*/*/summary.json")):
        folder = results / file.parent.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        rows = read_metrics(file.parent / "metrics.csv")
        columns = [name for name in rows[0] if name in ("step", "reward") or "variance_" in name]
        rows = [{k: "" if v != v else f"{v:.5g}" for k, v in row.items()} for row in rows]
        write_rows(folder / f"{file.parent.name}.csv", tuple(columns), rows)
        config = json.loads((file.parent / "config.json").read_text())
        summary = {**json.loads(file.read_text()), "config": config}
        stored = json.dumps(summary, indent=2) + "\n"
        (folder / f"{file.parent.name}.json").write_text(stored)


def regenerate(folder: pathlib.Path) -> None:
    """Draws `rl.png` and writes `table.md` from what is stored in the folder of a task."""
    summaries = [json.loads(file.read_text()) for file in sorted(folder.glob("*-*.json"))]
    by_method = {}
    for summary in summaries:
        rows = read_metrics(folder / f"{summary['method']}-{summary['seed']}.csv")
        by_method.setdefault(summary["method"], []).append(rows)
    thresholds = [float(threshold) for threshold in summaries[0]["solved"]]
    figures.rewards(folder / "rl.png", by_method, thresholds)
    runs = [rows for lines in by_method.values() for rows in lines]
    (folder / "table.md").write_text(table(summaries) + differences(runs))


def table(summaries: list[dict]) -> str:
    """A row for each method, means over its runs and standard errors, then one for each run."""
    thresholds = list(summaries[0]["solved"])
    variances = [key for key in summaries[0] if key.startswith("mean_log_variance_")]
    names = [key.removeprefix("mean_log_variance_") for key in variances]
    head = [
        "method",
        "runs",
        *(f"episodes until the mean reward is above {t}" for t in thresholds),
        *(f"log-variance, `{name}`" for name in names),
    ]
    lines = [head, ["---"] * len(head)]
    for method in sorted({s["method"] for s in summaries}):
        runs = [s for s in summaries if s["method"] == method]
        solved = [_mean_solved([(s["solved"][t], s["episodes"]) for s in runs]) for t in thresholds]
        means = [_mean([s[key] for s in runs]) for key in variances]
        lines.append([method, str(len(runs)), *solved, *means])
    head = ["run", *(f"above {t}" for t in thresholds), "episodes", "mean reward of the last 100"]
    lines += [[], [*head, "seconds", *_works(summaries), "commit", "command"]]
    lines.append(["---"] * len(lines[-1]))
    for s in summaries:
        shares = [f"{share:.0%}" for share in s["share"].values()]
        solved = [str(s["solved"][t] or "never") for t in thresholds]
        run = [f"{s['method']}-{s['seed']}", *solved, str(s["episodes"]), str(s["mean_reward"])]
        lines.append([*run, str(s["seconds"]), *shares, str(s["commit"]), f"`{s['command']}`"])
    return "\n".join(f"| {' | '.join(line)} |" if line else "" for line in lines) + "\n"


def differences(runs: list[list[dict[str, float]]]) -> str:
    """How the estimators' log-variances differ from A2C's at the same policy on the same rollouts.

    Means over a run's measurements but the first, where nothing is trained, then over all runs
    with their standard error.
    """
    names = [n for n in runs[0][0] if n.startswith("log_variance_") and not n.endswith("_a2c")]
    lines = ["", "Log-variance less A2C's on the same rollouts, mean over all runs:", ""]
    for name in names:
        pairs = [
            [row[name] - row["log_variance_a2c"] for row in rows if np.isfinite(row[name])][1:]
            for rows in runs
        ]
        means = [np.mean(values) for values in pairs if values]
        if means:
            lines.append(f"- `{name.removeprefix('log_variance_')}`: {_with_error(means, 2)}")
    return "\n".join(lines) + "\n"


def _with_error(values: list[float], digits: int = 0) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}"


def _works(summaries: list[dict]) -> list[str]:
    return list(summaries[0]["share"])


def _mean(values: list[float | None]) -> str:
    measured = [value for value in values if value is not None]
    return f"{np.mean(measured):.2f}" if measured else ""


def _mean_solved(runs: list[tuple[int | None, int]]) -> str:
    """The mean; a run that never got there counts with its length, which makes it a lower bound."""
    missing = sum(step is None for step, _ in runs)
    if missing == len(runs):
        return f"never in {max(length for _, length in runs)}"
    mean = _with_error([step or length for step, length in runs])
    return mean if not missing else f"over {mean} ({missing} of {len(runs)} never)"


def main(argv):
    del argv
    results = pathlib.Path(_RESULTS.value)
    if _COLLECT.value:
        collect(pathlib.Path(_COLLECT.value), results)
    folders = [folder for folder in sorted(results.glob("rl_*")) if any(folder.glob("*-*.json"))]
    for folder in folders:
        regenerate(folder)
        print(f"{folder / 'rl.png'}, {folder / 'table.md'}")


if __name__ == "__main__":
    app.run(main)
