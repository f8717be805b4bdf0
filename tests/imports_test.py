"""The package, the examples and the benchmarks import one way: no circle, whichever way in."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def modules(package):
    """Each file of a package by its module's name."""
    for path in (ROOT / package).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path, known):
    """The modules that a file imports, also inside of functions, among the known ones."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found = full if full in known else node.module
                if found in known:
                    yield found


def circle(graph):
    """Modules that import each other in a ring, or nothing."""
    done, stack = set(), []

    def visit(name):
        if name in stack:
            return stack[stack.index(name) :]
        if name in done:
            return []
        stack.append(name)
        found = next(filter(None, map(visit, graph[name])), [])
        stack.pop()
        done.add(name)
        return found

    return next(filter(None, map(visit, graph)), [])


@pytest.mark.parametrize("package", ["relax_tf", "examples", "benchmarks"])
def test_no_circle(package):
    files = dict(modules(package))
    graph = {name: sorted({*imports(path, files)} - {name}) for name, path in files.items()}
    assert circle(graph) == []


def test_a_circle_is_found():
    assert circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c"]


ORDER = (
    *("relax_tf.holding", "relax_tf.validation", "relax_tf.keras_internals"),
    "relax_tf.distributions",
    *("relax_tf.control_variates", "relax_tf.estimators", "relax_tf.layers", "relax_tf.losses"),
    *("relax_tf.optimizers", "relax_tf.step", "relax_tf.deployment", "relax_tf.models"),
)


def test_no_import_leads_upward():
    """From the mathematics to the models; what is not in the order may import all of it."""
    files = dict(modules("relax_tf"))

    def rank(name):
        ranks = [k for k, top in enumerate(ORDER) if name == top or name.startswith(top + ".")]
        return ranks[0] if ranks else None

    upward = [
        (name, imported)
        for name, path in files.items()
        for imported in imports(path, files)
        if rank(name) is not None and (rank(imported) is None or rank(imported) > rank(name))
    ]
    assert upward == []
