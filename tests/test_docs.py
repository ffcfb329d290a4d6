"""Documents that are generated are what the code would generate now."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_table_of_ops_is_up_to_date():
    page = runpy.run_path(str(ROOT / "docs" / "ops.py"))["table"]()
    assert (ROOT / "docs" / "ops.md").read_text() == page


def test_the_strategy_in_the_readme_works(monkeypatch):
    """It is said to be one function over mpsearch.search.problem: run it as one."""
    import mpsearch
    from mpsearch.search import registry as search
    from tests.planted import Planted, budget, samples

    text = (ROOT / "README.md").read_text()
    start = text.index("def search(problem):")
    scope: dict = {}
    exec(text[start : text.index("```", start)], scope)
    monkeypatch.setattr(search, "find_strategy", lambda name: scope["search"])
    result = mpsearch.optimize(Planted(0), samples(0), budget(0))
    assert result.met and 0 < len(result.fp32_ops) < result.candidate_ops


@pytest.mark.parametrize("page", ["packages", "transformers"])
def test_the_code_on_a_page_runs(page, tmp_path, monkeypatch):
    """All blocks of a page, one after the other, as a reader would paste them."""
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "guides" / f"{page}.md").read_text()
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, scope)
    assert scope["result"].met
