"""CONTRIBUTING's page on estimators, followed to the letter in a copy of the checkout."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
BLOCK = re.compile(r"<!-- ([^\n]*) -->\n```\w+\n(.*?)```", re.DOTALL)


def blocks():
    return BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())


def follow(folder):
    """Makes the page's edits; returns its command."""
    for instruction, text in blocks():
        if instruction.startswith("file: "):
            (folder / instruction.removeprefix("file: ")).write_text(text)
        elif instruction.startswith("after "):
            start, path = re.fullmatch(r'after "(.*)" in (\S+)', instruction).groups()
            lines = (folder / path).read_text().splitlines(keepends=True)
            (place,) = [k for k, line in enumerate(lines) if line.startswith(start)]
            lines.insert(place + 1, text)
            (folder / path).write_text("".join(lines))
        elif instruction == "command":
            command = shlex.split(text)
    return command


def test_the_page_makes_an_estimator_that_passes_the_suite(tmp_path):
    for name in ("relax_tf", "tests"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    _, *command = follow(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    environment.pop("PYTEST_XDIST_WORKER", None)
    ran = subprocess.run(
        [sys.executable, *command, "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", ran.stdout)[1]) > 50
    lint = [sys.executable, "-m", "ruff", "check", "--no-cache", "relax_tf"]
    ran = subprocess.run(lint, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
