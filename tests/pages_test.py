"""The pages: no dead link in any of them, and the one that is generated is up to date."""

import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import relax_tf
from docs import api
from tests.small_models import data, small_model

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("examples/**/*.md"),
    *ROOT.glob("benchmarks/*.md"),
]


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def anchors(page):
    """Of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    kept = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in kept}


def dead_links(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path) if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_no_link_is_dead(page):
    assert list(dead_links(page)) == []


def test_a_dead_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A head\n[a](b.md) [b](page.md#a-head) [c](#a-foot) `[d](e)`")
    assert list(dead_links(page)) == ["b.md", "#a-foot"]


def test_paths_that_pages_name_exist():
    """`relax_tf/...` of CONTRIBUTING, and what docs/ calls by its path below it."""
    for page in PAGES:
        for path in re.findall(r"`(\w+/[\w/]+\.py)`", page.read_text()):
            roots = [ROOT, ROOT / "relax_tf"] if page.parent.name == "docs" else [ROOT]
            assert any((root / path).exists() for root in roots), f"{page.name}: {path}"


def test_the_list_of_public_names_is_current():
    assert api.PAGE.read_text() == api.page(), "run `python -m docs.api`"


def test_every_public_name_is_described():
    for module in api.MODULES:
        assert module.__all__
        for name in module.__all__:
            assert getattr(module, name).__doc__
            assert f"`{name}" in api.page() or f"`{module.__name__}.{name}`" in api.page()


def recipe(page, start):
    """What the code block with this line in it defines."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    names = {"keras": keras, "tf": tf, "relax_tf": relax_tf}
    exec(next(block for block in blocks if start in block), names)
    return names


def test_recipe_of_a_weighted_kl():
    inputs = keras.Input([3])
    b = relax_tf.StochasticBinaryLayer(4, "flip", prior="uniform", name="b")(inputs)
    cls = recipe("docs/keras.md", "class BetaVAE")["BetaVAE"]
    model = cls(inputs, keras.layers.Dense(2)(b), beta=0.25)
    model.compile("sgd", loss="mse")
    model.get_layer("b").inference = "mode"  # the same at every evaluation
    x, y = data()
    logs = [model.evaluate(x, y, verbose=0, return_dict=True)]
    model.beta.assign(3.0)
    logs.append(model.evaluate(x, y, verbose=0, return_dict=True))
    assert logs[0]["b_kl"] == logs[1]["b_kl"] > 0
    assert logs[1]["loss"] - logs[0]["loss"] == pytest.approx(2.75 * logs[0]["b_kl"], rel=1e-4)
    model.fit(x, y, verbose=0)


def test_recipe_of_a_loop_of_ones_own():
    model = small_model("relax")
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    names = recipe("docs/estimators.md", "def step(x, y)")
    names["model"] = model
    x, y = data()
    model.optimizer.build(model.trainable_variables)
    model.estimate(tf.constant(x), tf.constant(y))
    before = {v.path: v.numpy() for v in model.trainable_variables}
    names["step"](tf.constant(x), tf.constant(y))
    changed = [v.path for v in model.trainable_variables if np.any(v.numpy() != before[v.path])]
    layer = model.get_layer("b")
    assert layer.kernel.path in changed
    assert any(v.path in changed for v in layer.estimator.trainable_variables)
