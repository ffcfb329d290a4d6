"""Bad input of every kind to every command: one line, exit code 2, nothing written or left."""

from __future__ import annotations

import json
import shutil

import pytest

from . import files, table
from .harness import one_line, run, snapshot

pytestmark = pytest.mark.thorough
#: How many parts the table is run in.
PARTS = 24


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with good and bad files, and the table made for it."""
    folder = tmp_path_factory.mktemp("trials") / "here"
    folder.mkdir()
    files.make_good(folder)
    models, data = files.make_bad(folder)
    config = json.loads((folder / "result" / "precision.json").read_text())
    result = json.loads((folder / "result" / "result.json").read_text())
    configs, results = [], []
    for name, (first, second) in files.edited(config, result).items():
        configs.append(_store(folder, name, first, second))
    for name, second in files.edited_results(result).items():
        results.append(_store(folder, f"result_{name}", config, second, manifest=True))
    (folder / "taken").write_text("a file of somebody's")
    (folder / "taken.npz").write_text("a file of somebody's")
    (folder / "taken.mlpackage").write_text("a file of somebody's")
    for name in ("others", "others.mlpackage", "others.npz"):
        (folder / name).mkdir()
        (folder / name / "thesis.tex").write_text("years of work")
    return folder, list(table.rows(models, data, configs, results))


def _store(folder, name, config, result, manifest=False):
    made = folder / name
    made.mkdir()
    for file, content in (("precision.json", config), ("result.json", result)):
        text = content if isinstance(content, str) else json.dumps(content)
        (made / file).write_text(text)
    if manifest:
        shutil.copy(folder / "result" / "manifest.json", made / "manifest.json")
        (made / "report.html").write_text("the former one")
    return name


def failures(place, tmp, rows):
    """Per row that was not refused as it should be, what was wrong."""
    folder, _ = place
    before = snapshot(folder)
    found = {}
    for name, argv in rows:
        outcome = run(argv, folder, tmp)
        wrong = one_line(outcome)
        if wrong is None and snapshot(folder) != before:
            wrong = f"changed {set(snapshot(folder).items()) ^ set(before.items())}"
        if wrong is not None:
            found[name] = wrong
    return found


@pytest.mark.parametrize("part", range(PARTS))
def test_bad_input_is_one_line_and_leaves_nothing(part, place, tmp_path):
    _, rows = place
    assert len(rows) >= 800 and len({name for name, _ in rows}) == len(rows)
    assert failures(place, tmp_path, rows[part::PARTS]) == {}
