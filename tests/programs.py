"""Starts examples as a user does, `python -m ...`, in processes of their own.

They are forked from one that has imported TensorFlow and done nothing else: that import is most of
what a small program takes.
"""

import multiprocessing
import os
import pathlib
import runpy
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["relax_tf", "matplotlib.pyplot", "tensorflow_datasets"])


class Program:
    """`python -m module *arguments` in the repository's folder, started."""

    def __init__(self, module, *arguments):
        self._folder = tempfile.TemporaryDirectory()
        self._output = pathlib.Path(self._folder.name) / "output"
        self._process = FORKS.Process(target=_run, args=(self._output, module, *arguments))
        self._process.start()

    def poll(self):
        """The exit code, None while the program runs."""
        return self._process.exitcode

    def kill(self):
        self._process.kill()
        self._process.join()

    def output(self):
        """What it printed, once it has ended."""
        self._process.join()
        return self._output.read_text()


def _run(path, module, *arguments):
    os.chdir(ROOT)
    output = os.open(path, os.O_WRONLY | os.O_CREAT)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def start(example, config, workdir, *overrides):
    """An example with a config of `configs/`, by name, or of another folder, by path."""
    config = pathlib.Path("configs") / config
    command = [f"--config={config}.py", f"--workdir={workdir}"]
    return Program(f"examples.{example}", *command, *overrides)


def finish(program):
    """The output of a program that ends well."""
    output = program.output()
    assert program.poll() == 0, output
    return output
