"""The pages: no dead link in any of them, and the one that is generated is up to date."""

import pathlib
import re

import pytest

from docs import api

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
