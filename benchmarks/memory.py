"""Memory of training, each case in a process of its own.

    python -m benchmarks.memory '{"estimator": "relax", "batch_size": 24}'

prints three numbers in MiB as JSON:

    peak      resident memory at its highest, compilation included, less that after the imports
    training  the same over the steps after compilation, memory that is free given back
    buffers   what XLA allots for one step: variables, optimizer, batch and temporaries (0 without)
"""

import ctypes
import gc
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

_ROOT = pathlib.Path(__file__).parent.parent


def measure(case: dict) -> dict[str, float]:
    """The three numbers of a case, by a child process.

    Args:
        case: arguments of `models.compiled`, and `batch_size`.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_dump_to={folder} --xla_dump_hlo_module_re=.*one_step.*"
        output = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", json.dumps(case)],
            env={**os.environ, "XLA_FLAGS": f"{flags} --xla_dump_hlo_as_text"},
            cwd=_ROOT,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        reports = pathlib.Path(folder).glob("*memory-usage-report.txt")
        totals = [re.search(r"Total bytes used: (\d+)", report.read_text()) for report in reports]
    buffers = max((int(total[1]) for total in totals), default=0) / 2**20
    return {**json.loads(output.splitlines()[-1]), "buffers": buffers}


def _resident(field: str) -> float:
    """MiB of this process; `getrusage` would begin with the parent's."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(field + r":\s+(\d+) kB", status)[1]) / 1024


def _train(batch_size: int, **case) -> dict[str, float]:
    from benchmarks import models

    before = _resident("VmRSS")
    dataset = models.data(batch_size, case.get("pixels", 784))
    model = models.compiled(**case)
    steps = {"steps_per_epoch": 2 * model.steps_per_execution, "verbose": 0, "shuffle": False}
    model.fit(dataset, **steps)
    peak = _resident("VmHWM") - before
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    model.fit(dataset, **steps)
    return {"peak": peak, "training": _resident("VmHWM") - before}


if __name__ == "__main__":
    print(json.dumps(_train(**json.loads(sys.argv[1]))))
