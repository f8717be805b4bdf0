"""Writes docs/api.md: every public name, with its signature and its docstring.

python -m docs.api
"""

import inspect
import pathlib
import re
from types import ModuleType
from typing import Any

import relax_tf
import relax_tf.datasets
from relax_tf import control_variates, distributions, losses, policy_gradients

PAGE = pathlib.Path(__file__).with_name("api.md")
MODULES = [relax_tf, relax_tf.estimators, distributions, control_variates, losses]
MODULES += [policy_gradients, relax_tf.diagnostics, relax_tf.datasets]
HEAD = "# Public names\n\nWritten by `python -m docs.api` from the docstrings; do not edit.\n"


def signature(function: Any) -> str:
    """Arguments and defaults, without types."""
    parameters = inspect.signature(function).parameters.values()
    plain = [p.replace(annotation=p.empty) for p in parameters if p.name not in ("self", "cls")]
    return re.sub(r"<function (\w+) at \w+>", r"\1", str(inspect.Signature(plain)))


def markdown(docstring: str) -> str:
    """A docstring with its sections as lists, and without its example."""
    text, lines = re.split(r"\n+Example", docstring)[0], []
    in_section = False
    for line in text.split("\n"):
        if re.fullmatch(r"[A-Z]\w+:", line):
            in_section = True
            line = f"**{line[:-1]}**\n"
        elif line and not line.startswith(" "):
            in_section = False
        elif in_section:
            line = re.sub(r"^    (\**\w[\w, `*]*): ", r"- `\1`: ", line)
            line = re.sub(r"^ +", "  ", line)
        lines.append(line)
    return "\n".join(lines)


def methods(cls: type, described: list[str]) -> list[str]:
    """The public methods and properties that the library itself documents, one line each.

    Those of base classes that are described elsewhere are left out.
    """
    found = {}
    for base in reversed([b for b in cls.__mro__ if b.__module__.startswith("relax_tf")]):
        if base is not cls and base.__name__ in described:
            continue
        for name, value in vars(base).items():
            described_above = name in found and not value.__doc__
            if not name.startswith("_") and not described_above:
                found[name] = value
    lines = []
    for name, value in sorted(found.items()):
        value = getattr(value, "__func__", value)
        function = value.fget if isinstance(value, property) else value
        if not inspect.isfunction(function) or not function.__doc__:
            continue
        if not function.__module__.startswith("relax_tf"):
            continue  # Keras's own documentation has it
        arguments = "" if isinstance(value, property) else signature(function)
        first = inspect.cleandoc(function.__doc__).split("\n\n")[0].replace("\n", " ")
        lines.append(f"- `.{name}{arguments}` {first}")
    return lines


def entries(module: ModuleType) -> list[str]:
    found = []
    for name in sorted(module.__all__):
        thing = getattr(module, name)
        if inspect.ismodule(thing):
            continue
        found.append(f"\n### `{name}{signature(thing)}`\n\n{markdown(inspect.getdoc(thing))}\n")
        if inspect.isclass(thing) and (lines := methods(thing, module.__all__)):
            found.append("\n".join(["", *lines, ""]))
    return found


def page() -> str:
    """The whole page, in Markdown."""
    parts = [HEAD]
    for module in MODULES:
        first = inspect.getdoc(module).split("\n\n")[0]
        parts += [f"\n## `{module.__name__}`\n\n{first}\n", *entries(module)]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
