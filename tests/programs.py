"""Starts examples as a user does, in processes of their own."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def start(example, config, workdir, *overrides):
    command = [sys.executable, "-m", f"examples.{example}", f"--config=configs/{config}.py"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *overrides],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process):
    """The output of a process that ends well."""
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output
