"""Documents that are generated are what the code would generate now."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from mpsearch import options

ROOT = Path(__file__).parent.parent


def test_the_table_of_ops_is_up_to_date():
    page = runpy.run_path(str(ROOT / "docs" / "ops.py"))["table"]()
    assert (ROOT / "docs" / "ops.md").read_text() == page


def test_the_schemas_are_up_to_date():
    made = runpy.run_path(str(ROOT / "docs" / "schemas.py"))["schemas"]()
    kept = {p.name: p.read_text() for p in (ROOT / "docs" / "schemas").glob("*.json")}
    assert kept == made


def test_the_page_on_numbers_names_every_metric():
    page = (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8")
    assert [name for name in options.METRICS if f"`{name}`" not in page] == []


def test_the_strategy_on_its_page_works():
    """It is said to be one function of a mpsearch.search.search.Search: run it as one."""
    import mpsearch
    from tests.planted import Planted, budget, samples

    text = (ROOT / "docs" / "strategies.md").read_text()
    start = text.index("def search(search):")
    scope: dict = {}
    exec(text[start : text.index("```", start)], scope)
    left = mpsearch.Constraints(tolerate_overflow=True)
    result = mpsearch.optimize(
        Planted(0), samples(0), budget(0), strategy=scope["search"], constraints=left
    )
    assert result.met and 0 < len(result.fp32_ops) < result.candidate_ops
    assert any(trial.asked_by == "drop" for trial in result.trials)


def _pages():
    pages = sorted((ROOT / "docs").rglob("*.md"))
    ours = [p.relative_to(ROOT / "docs") for p in pages if "_build" not in p.parts]
    return [str(p) for p in ours if "```python" in (ROOT / "docs" / p).read_text()]


@pytest.mark.thorough
@pytest.mark.parametrize("page", _pages())
def test_the_code_on_a_page_runs(page, tmp_path, monkeypatch):
    """All blocks of a page, one after the other, as a reader would paste them."""
    text = (ROOT / "docs" / page).read_text()
    for needed in ("transformers", "diffusers", "sklearn", "lightning"):
        if f"from {needed}" in text or f"mpsearch.training.{needed}" in text:
            pytest.importorskip(needed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    scope: dict = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, scope)
    if "result" in scope:
        assert scope["result"].met
