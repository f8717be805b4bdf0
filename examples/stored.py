"""The stored VAE runs: their rows, the paper's figures beside them, the commands to repeat them."""

import importlib
import json
import math
import pathlib
import shlex
from typing import Any, NamedTuple

import ml_collections

from examples.metrics import read_metrics

# Table 1 of the paper: training ELBO in nats, best over training. Its nonlinear figures are of two
# models. Those of NVIL, MuProp and the first REBAR column are from Tucker et al. (2017), with tanh
# layers of 200. "REBAR ours" and RELAX, 18 to 50 nats better, are of the paper's code, which makes
# the tanh layers of the decoder as wide as the image. In the linear models REBAR is "REBAR ours".
PAPER = {
    ("mnist", "linear1"): {
        "nvil": -112.5,
        "muprop": -111.7,
        "rebar": -111.66,
        "relaxed_rebar": -111.22,
    },
    ("mnist", "linear2"): {
        "nvil": -99.6,
        "muprop": -99.07,
        "rebar": -98.23,
        "relaxed_rebar": -98.04,
    },
    ("mnist", "nonlinear"): {
        "nvil": -102.2,
        "muprop": -101.5,
        "rebar": -101.1,
    },
    ("mnist", "nonlinear_wide"): {
        "rebar": -83.02,
        "relaxed_rebar": -79.49,
    },
    ("omniglot", "linear1"): {
        "nvil": -117.44,
        "muprop": -117.09,
        "rebar": -116.75,
        "relaxed_rebar": -116.62,
    },
    ("omniglot", "linear2"): {
        "nvil": -109.98,
        "muprop": -109.55,
        "rebar": -108.74,
        "relaxed_rebar": -108.59,
    },
    ("omniglot", "nonlinear"): {
        "nvil": -110.4,
        "muprop": -109.58,
        "rebar": -108.72,
    },
    ("omniglot", "nonlinear_wide"): {
        "rebar": -62.28,
        "relaxed_rebar": -58.55,
    },
}
PAPER_STEPS = 2_000_000

# Fields that a rerun does not need: where data and time go, not what comes out.
_NOT_IN_COMMAND = {"data_dir", "verbose", "jit_compile", "steps_per_execution"}


class Run(NamedTuple):
    """The stored results of one run."""

    name: str
    is_sweep: bool
    config: dict[str, Any]
    rows: list[dict[str, float]]
    results: dict[str, Any]  # of the last evaluation; {} if there was none
    provenance: list[dict[str, str]]

    @property
    def problem(self) -> tuple[str, str]:
        return self.config["dataset"], self.config["architecture"]

    @property
    def last(self) -> dict[str, float]:
        return self.rows[-1]

    def best(self, column: str) -> float:
        """The highest value of a column after step 0."""
        values = [row[column] for row in self.rows if row["step"] and not math.isnan(row[column])]
        return max(values, default=math.nan)

    @property
    def paper(self) -> float | None:
        """The paper's training ELBO; it speaks of the full datasets."""
        if self.config.get("splits"):
            return None
        return PAPER.get(self.problem, {}).get(self.config["estimator"])

    @property
    def commits(self) -> str:
        return ", ".join(dict.fromkeys(entry["commit"] for entry in self.provenance)) or "?"


def read_runs(folder: pathlib.Path) -> list[Run]:
    """The VAE runs below a folder that have at least one row after step 0, sorted by name."""
    runs = []
    for file in sorted(folder.rglob("config.json")):
        config = json.loads(file.read_text())
        rows = read_metrics(file.parent / "metrics.csv") if "architecture" in config else []
        if rows and rows[-1]["step"] > 0:
            place = file.parent.relative_to(folder)
            runs.append(
                Run(
                    name=str(place),
                    is_sweep="sweeps" in place.parts,
                    config=config,
                    rows=rows,
                    results=_json(file.parent / "results.json", {}),
                    provenance=_json(file.parent / "provenance.json", []),
                )
            )
    return runs


def _json(file: pathlib.Path, default: Any) -> Any:
    return json.loads(file.read_text()) if file.exists() else default


def command(run: Run) -> str:
    """The command that repeats a run: the Table 1 config, and every field that differs from it."""
    row = "-".join([*run.problem, run.config["estimator"]])
    base = importlib.import_module("configs.vae_table1").get_config(row)
    start = ["python", "-m", "examples.vae", f"--config=configs/vae_table1.py:{row}"]
    fixed = {"steps": run.last["step"], "seed": run.config["seed"]}
    return shlex.join([*start, "--workdir=DIR", *overrides(run.config, base, fixed)])


def overrides(
    config: dict[str, Any], base: ml_collections.ConfigDict, fixed: dict[str, Any]
) -> list[str]:
    """The flags for the fields in which a run differs from its config file, and for `fixed`."""
    base = json.loads(base.to_json_best_effort())
    changed = {
        key: value
        for key, value in config.items()
        if value != base.get(key) and key not in _NOT_IN_COMMAND and key in base
    }
    return [f"--config.{key}={_flag(value)}" for key, value in sorted((changed | fixed).items())]


def _flag(value: Any) -> str:
    if isinstance(value, list):
        return str(tuple(value)).replace(" ", "")
    return str(value)
