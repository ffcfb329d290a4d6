"""How the house is built: what passes through how many files, what a study and a result hold."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mpsearch
from mpsearch.options import strategy_names
from tests.models import batches, net
from tests.planted import Planted, budget, samples


def test_the_model_passes_through_few_files():
    """Counted in the frames of mpsearch that hold the very object that the caller gave."""
    model, seen = net(), set()

    def profile(frame, event, _):
        file = frame.f_code.co_filename
        ours = event == "call" and "/mpsearch/" in file
        if ours and any(value is model for value in frame.f_locals.values()):
            seen.add(file)

    sys.setprofile(profile)
    try:
        mpsearch.optimize(model, batches(), 1e-2)
    finally:
        sys.setprofile(None)
    assert 0 < len(seen) <= 12, sorted(seen)


def test_what_is_installed_is_all_there_is():
    """The packages and the files in them, as pyproject.toml lists them, beside those on disk."""
    root = Path(__file__).parents[1]
    if not (root / "strategies").exists():
        pytest.skip("the wheel is tested, and there is no source beside it")
    tool = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        package: root / tool["package-dir"].get(package, package.replace(".", "/"))
        for package in tool["packages"]
    }
    made = {path.parent for path in (root / "mpsearch").rglob("*.py")} | {root / "strategies"}
    assert set(folders.values()) == made
    listed = {
        file
        for package, globs in tool["package-data"].items()
        for glob in globs
        for file in folders[package].glob(glob)
    }
    other = {file for folder in made for file in folder.iterdir() if file.is_file()}
    assert listed == {file for file in other if file.suffix not in (".py", ".pyc")}


def test_every_strategy_of_this_package_is_installed_and_explained():
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = project["entry-points"]["mpsearch.strategies"]
    assert listed.keys() <= {*strategy_names()}, "install again: .venv/bin/pip install -e ."
    page = Path("docs/strategies.md").read_text(encoding="utf-8")
    modules = {entry.partition(":")[0] for entry in listed.values()}
    assert [module for module in modules if f"automodule:: {module}\n" not in page] == []


@pytest.mark.thorough
def test_a_search_does_not_load_torchs_compiler():
    """It takes seconds and 25 MB, and nothing here is compiled."""
    code = (
        "import sys, mpsearch; from tests.models import batches, net\n"
        "mpsearch.optimize(net(), batches(), 1e-2)\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False)
    assert done.returncode == 0


def test_every_set_that_is_judged_is_a_trial_of_the_study():
    tolerant = mpsearch.Constraints(tolerate_overflow=True)
    found = mpsearch.optimize(Planted(0), samples(0), budget(0), heldout=0.0, constraints=tolerant)
    trials = [t for t in found.study.trials if t.state.name == "COMPLETE"]
    judged = [t.user_attrs for t in trials]
    assert [a["pass"] for a in judged][: len(found.trials)]
    assert {(a["pass"], len(a["fp32_ops"])) for a in judged} == {
        (row.asked_by, row.fp32_ops) for row in found.trials
    }
    assert {"ends", "propose"} <= {a["pass"] for a in judged}
    best = min(
        (t for t in trials if t.constraints["budget"] <= 0 and t.user_attrs["exact"]),
        key=lambda t: (t.value, t.user_attrs["loss"]),
    )
    assert best.value == len(found.fp32_ops)
