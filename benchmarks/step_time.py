"""Time of one optimisation step through `model.fit`, against the straight-through floor.

    python -m benchmarks.step_time --quick
    python -m benchmarks.step_time --estimators=straight_through,reinmax,flip,midpoint --out=DIR
    python -m benchmarks.step_time --out=DIR
    python -m benchmarks.step_time --architectures=linear2,nonlinear --settings=xla --out=DIR
    python -m benchmarks.step_time --memory --out=DIR
    python -m benchmarks.step_time --overheads

The unit of work is the linear one-layer VAE 784-200-784, both parameter groups updated, data in
memory. All models of a batch size live in one process and take turns; each cell is the median over
the rounds. The floor is the same model trained with `straight_through`, compiled in the same way.
"""

import pathlib

import tensorflow as tf
from absl import app, flags

from benchmarks import charts, memory, models, timing
from examples.data import batches

_QUICK = flags.DEFINE_bool("quick", False, "Batch 24 with XLA, the main estimators, a minute.")
_OVERHEADS = flags.DEFINE_bool("overheads", False, "The step without metrics, without input.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["24", "100"], "Batch sizes.")
_ARCHITECTURES = flags.DEFINE_list("architectures", ["linear1"], "Of examples/vae_models.py.")
_SETTINGS = flags.DEFINE_list("settings", ["xla", "default"], "How the models are compiled.")

_BY_NAME = {"xla": timing.XLA, "default": timing.DEFAULT}
_KEYS = ("architecture", "batch", "xla", "estimator")


def times(
    architecture: str,
    batch_size: int,
    estimators: list[str],
    setting: dict,
    rounds: int,
    steps: int,
) -> list[dict]:
    """Rows of the table, one for each estimator."""
    cases = {name: {"estimator": name, "architecture": architecture} for name in estimators}
    rows = timing.compare(batch_size, cases, setting, rounds, steps)
    return [{"architecture": architecture, **row} for row in rows]


def memories(
    architecture: str, batch_size: int, estimators: list[str], setting: dict
) -> list[dict]:
    """Rows of the table of memory, MiB, and ratios to the floor of what XLA allots or training."""
    case = {"architecture": architecture, "batch_size": batch_size, **setting}
    measured = {name: memory.measure({**case, "estimator": name}) for name in estimators}
    kind = "buffers" if setting["jit_compile"] else "training"
    floor = measured[estimators[0]][kind]
    return [
        {
            "architecture": architecture,
            "batch": batch_size,
            "xla": setting["jit_compile"],
            "estimator": name,
            **{f"{key}_mib": value for key, value in mib.items()},
            "ratio": mib[kind] / floor,
        }
        for name, mib in measured.items()
    ]


def overheads(batch_size: int, estimator: str, rounds: int, steps: int) -> list[dict]:
    """The step with one thing at a time taken away or put in its place."""
    images = models.random_images(100 * batch_size)
    batch = images.train[:batch_size]
    cached = models.data(batch_size)
    constant = models.endless(tf.data.Dataset.from_tensors((batch, batch)))
    variants = {
        "as benchmarked": (timing.XLA, cached),
        "one constant batch": (timing.XLA, constant),
        "the examples' pipeline": (timing.XLA, batches(images.train, batch_size, seed=0)),
        "no metrics": (timing.XLA, cached),
        "no metrics, one constant batch": (timing.XLA, constant),
        "steps_per_execution=1": ({**timing.XLA, "steps_per_execution": 1}, cached),
    }
    competitors = {k: models.compiled(estimator, **setting) for k, (setting, _) in variants.items()}
    for name, model in competitors.items():
        if name.startswith("no metrics"):
            models.without_metrics(model)
    datasets = {name: dataset for name, (_, dataset) in variants.items()}
    results = timing.race(competitors, datasets, rounds, steps)
    base = results["as benchmarked"].milliseconds
    return [
        {
            "batch": batch_size,
            "variant": name,
            "ms": result.milliseconds,
            "ratio": result.milliseconds / base,
        }
        for name, result in results.items()
    ]


def main(argv):
    del argv
    rounds, steps = timing.ROUNDS.value, timing.STEPS.value
    if _QUICK.value:
        quick = [models.FLOOR, "flip", "relaxed_disarm", "relaxed_rebar", "relax"]
        timing.print_table(times("linear1", 24, quick, timing.XLA, 3, steps))
        return
    batch_sizes = list(map(int, _BATCH_SIZES.value))
    if _OVERHEADS.value:
        for size in batch_sizes:
            rows = overheads(size, "relaxed_rebar", rounds, steps)
            _report("overheads", rows, ("batch", "variant"))
        return
    estimators = timing.ESTIMATORS.value or models.binary_estimators()
    for architecture in _ARCHITECTURES.value:
        for setting in map(_BY_NAME.__getitem__, _SETTINGS.value):
            for batch_size in batch_sizes:
                case = (architecture, batch_size, estimators, setting)
                if timing.MEMORY.value:
                    _report("memory", memories(*case), _KEYS)
                else:
                    rows = _report("step_time", times(*case, rounds, steps), _KEYS)
                    if rows:
                        charts.ratios(pathlib.Path(timing.OUT.value) / "step_time.png", rows)


def _report(name: str, rows: list[dict], keys: tuple[str, ...]) -> list[dict[str, str]]:
    """Prints rows and adds them to the file of this name; returns all that are in it."""
    timing.print_table(rows)
    if timing.OUT.value is None:
        return []
    return timing.merge_csv(pathlib.Path(timing.OUT.value) / f"{name}.csv", rows, keys)


if __name__ == "__main__":
    app.run(main)
