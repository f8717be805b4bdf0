"""How the step grows with latent units, stochastic layers and samples.

    python -m benchmarks.growth --out=DIR
    python -m benchmarks.growth --memory --out=DIR

Prints a table and writes CSV files and charts. `units`: the linear one-layer VAE 784-units-784.
`layers`: a chain of layers of 200 units, each with a KL (`models.chain`), in which a replay of one
layer runs through all the layers after it. `samples`: K of the multi-sample estimators. Batch 24,
XLA. `per_size` is the time over that of the smallest size, over the ratio of the sizes: 1 is
linear. Memory is measured in a child process for each case.
"""

import pathlib
from collections.abc import Callable

from absl import app, flags

from benchmarks import charts, memory, models, timing

_SWEEPS = flags.DEFINE_list("sweeps", ["units", "layers", "samples"], "Which sweeps.")
_BATCH_SIZE = 24


def _units(estimator: str, size: int) -> dict:
    return {"estimator": estimator, "units": size}


def _layers(estimator: str, size: int) -> dict:
    return {"estimator": estimator, "architecture": "chain", "layers": size}


def _samples(estimator: str, size: int) -> dict:
    return {"estimator": estimator, "estimator_settings": {"num_samples": size}}


# The case of an estimator and a size; estimators; sizes.
SWEEPS: dict[str, tuple[Callable, list[str], list[int]]] = {
    "units": (_units, [models.FLOOR, "relax", "relaxed_rebar"], [200, 1000, 4000]),
    "layers": (_layers, [models.FLOOR, "relax", "rebar", "relaxed_rebar"], [1, 2, 4, 6]),
    "samples": (_samples, ["rloo", "vimco"], [2, 8, 32, 64]),
}


def times(
    sweep: str,
    estimators: list[str],
    sizes: list[int],
    rounds: int,
    steps: int,
    setting: dict = timing.XLA,
    **fields,
) -> list[dict]:
    """Rows of one sweep, sizes increasing; `fields` go to `models.compiled`."""
    case = SWEEPS[sweep][0]
    keys = [(estimator, size) for estimator in estimators for size in sizes]
    competitors = {key: models.compiled(**case(*key), **setting, **fields) for key in keys}
    data = models.data(_BATCH_SIZE, fields.get("pixels", 784))
    results = timing.race(competitors, data, rounds, steps)
    return [
        {
            "sweep": sweep,
            "estimator": estimator,
            "size": size,
            "ms": result.milliseconds,
            "per_size": result.milliseconds
            / results[estimator, sizes[0]].milliseconds
            / (size / sizes[0]),
            "compile_s": result.compile_seconds,
        }
        for (estimator, size), result in results.items()
    ]


def memories(sweep: str, estimators: list[str], sizes: list[int]) -> list[dict]:
    """Rows of one sweep, MiB."""
    case = SWEEPS[sweep][0]
    rows = []
    for estimator in estimators:
        for size in sizes:
            measured = memory.measure({**case(estimator, size), "batch_size": _BATCH_SIZE})
            columns = {f"{key}_mib": value for key, value in measured.items()}
            rows.append({"sweep": sweep, "estimator": estimator, "size": size, **columns})
    return rows


def main(argv):
    del argv
    for sweep in _SWEEPS.value:
        _, estimators, sizes = SWEEPS[sweep]
        estimators = timing.ESTIMATORS.value or estimators
        if timing.MEMORY.value:
            name, value, label = "growth_memory", "buffers_mib", "memory of a step (MiB)"
            rows = memories(sweep, estimators, sizes)
        else:
            name, value, label = "growth", "ms", "ms/step"
            rows = times(sweep, estimators, sizes, timing.ROUNDS.value, timing.STEPS.value)
        timing.print_table(rows)
        if timing.OUT.value:
            folder = pathlib.Path(timing.OUT.value)
            keys = ("sweep", "estimator", "size")
            rows = timing.merge_csv(folder / f"{name}.csv", rows, keys)
            charts.growth(folder / f"{name}.png", rows, value, label)


if __name__ == "__main__":
    app.run(main)
