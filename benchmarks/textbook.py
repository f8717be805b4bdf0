"""Times the published recipe of RELAX (`recipe.py`) beside the library.

    python -m benchmarks.textbook

Prints the milliseconds of a step of the floor, of the recipe and of the library's `relaxed_rebar`,
in one run, with and without XLA.
"""

import pathlib

from absl import app

from benchmarks import models, timing

CASES = {
    models.FLOOR: {"estimator": models.FLOOR},
    "relaxed_rebar": {"estimator": "relaxed_rebar"},
    "textbook": {"architecture": "textbook"},
}


def main(argv):
    del argv
    rows = []
    for setting in (timing.XLA, timing.DEFAULT):
        for batch_size in (24, 100):
            arguments = (timing.ROUNDS.value, timing.STEPS.value)
            rows += timing.compare(batch_size, CASES, setting, *arguments)
            ours = rows[-2]["ms"]
            rows[-3:] = [{**row, "times_ours": row["ms"] / ours} for row in rows[-3:]]
    timing.print_table(rows)
    if timing.OUT.value:
        path = pathlib.Path(timing.OUT.value) / "textbook.csv"
        timing.merge_csv(path, rows, ("batch", "xla", "estimator"))


if __name__ == "__main__":
    app.run(main)
