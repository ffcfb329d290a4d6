"""What was evaluated is kept as it is made, and another run goes on from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import optuna
import pytest

import mpsearch
from mpsearch.ending import Stop
from mpsearch.evaluation.evaluator import Evaluation
from mpsearch.options import strategy_names
from mpsearch.results.unfinished import Unfinished
from mpsearch.search import study as studies_
from mpsearch.search.storage import open_storage
from mpsearch.search.study import Study
from mpsearch.temporary import temporary_folder

from .command import run
from .planted import Planted, budget, samples

MODEL, DATA = "tests.models:net", "tests.models:batches"
ARGV = ["optimize", MODEL, "--inputs", DATA, "--budget", "1e-2", "-o", "out"]
COST = {"seconds", "forward_equivalents", "op_executions"}


def search(storage=None, resume=False, seed=3, data=None, factor=1.0, **options):
    execution = mpsearch.Execution(storage=storage, resume=resume)
    return mpsearch.optimize(
        Planted(seed),
        samples(data if data is not None else seed),
        factor * budget(seed),
        execution=execution,
        **options,
    )


def content(result):
    return {key: value for key, value in result.as_dict().items() if key not in COST}


@pytest.fixture
def evaluated(monkeypatch):
    """The evaluations that were made while a study was stored, in order."""
    made = []
    note = Study.note

    def counted(self, precision, sample, evaluation):
        if self._stored is not None:
            made.append((precision.fp32, sample))
        note(self, precision, sample, evaluation)

    monkeypatch.setattr(Study, "note", counted)
    return made


def stored(url):
    """How many trials of judged sets are stored."""
    storage = open_storage(url)
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    return sum(trial.state.name == "COMPLETE" for trial in trials)


def stopping(after):
    """Study.add that is killed once it has stored so many trials."""
    add, count = Study.add, []

    def cut(self, *args):
        add(self, *args)
        count.append(self)
        if len(count) == after:
            raise Killed

    return cut


@pytest.fixture(params=["sqlite:///", "journal:"])
def url(request, tmp_path):
    return request.param + str(tmp_path / "study")


class Killed(KeyboardInterrupt):
    pass


@pytest.mark.thorough
@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_search_that_was_cut_short_goes_on_and_evaluates_nothing_again(
    after, url, evaluated, monkeypatch
):
    unbroken = search()
    with monkeypatch.context() as patched:
        patched.setattr(Study, "add", stopping(after))
        with pytest.raises(Killed):
            search(url)
    assert bool(evaluated) == (after > 1)  # all-FP32 was measured before
    resumed = search(url, resume=True)
    assert content(resumed) == content(unbroken)
    assert len(set(evaluated)) == len(evaluated)
    complete = [t for t in resumed.study.trials if t.state.name == "COMPLETE"]
    assert stored(url) == len(complete)
    search(url, resume=True)  # once more, of what is complete
    assert len(set(evaluated)) == len(evaluated)
    assert stored(url) == len(complete)


@pytest.mark.thorough
@pytest.mark.parametrize("strategy", strategy_names())
def test_every_strategy_goes_on(strategy, tmp_path, monkeypatch):
    """Also samplers that learn from the whole study."""
    limits = mpsearch.Limits(trials=40)
    unbroken = search(strategy=strategy, limits=limits)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with monkeypatch.context() as patched:
        patched.setattr(Study, "add", stopping(5))
        with pytest.raises(Killed):
            search(url, strategy=strategy, limits=limits)
    resumed = search(url, resume=True, strategy=strategy, limits=limits)
    assert content(resumed) == content(unbroken)


def test_more_trials_go_on_from_fewer(tmp_path, evaluated):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    search(url, limits=mpsearch.Limits(trials=5))
    few = len(evaluated)
    longer = search(url, resume=True)
    assert content(longer) == content(search())
    assert len(set(evaluated)) == len(evaluated) > few


def test_a_study_of_something_else_is_refused_with_what_differs(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    search(url)
    for options, said in (
        ({"factor": 2.0}, f"budget was {budget(3)}, and is {2 * budget(3)};"),
        ({"data": 1}, "data is another;"),
        ({"seed": 4, "data": 3, "factor": budget(3) / budget(4)}, "model is another;"),
        ({"numerics": "ane"}, "numerics was ieee, and is ane;"),
        ({"constraints": mpsearch.Constraints(by="layer")}, "by was op, and is layer;"),
        ({"heldout": 0.5}, "heldout was 0.3, and is 0.5"),
    ):
        with pytest.raises(mpsearch.InputError) as refused:
            search(url, resume=True, **options)
        assert said in str(refused.value), str(refused.value)
        assert "leave Execution(resume=True) out" in str(refused.value)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "attribute",
    [
        {"evaluations 0": 7},
        {"evaluations 0": "[[1, 2]]"},
        {"evaluations 0": "{"},
        {"evaluations 0": '[["a", "x", true, [], 0, 0.0, []]]'},
        {"fp32_ops": 1},
    ],
)
def test_a_study_that_was_tampered_with_is_one_line(attribute, tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    search(url)
    (name,) = optuna.get_all_study_names(url)
    study = optuna.load_study(study_name=name, storage=url)
    known = study.trials[1].user_attrs
    study.add_trial(optuna.trial.create_trial(value=0.0, user_attrs={**known, **attribute}))
    with pytest.raises(mpsearch.InputError, match="did not write"):
        search(url, resume=True)


def test_to_resume_takes_a_storage():
    with pytest.raises(mpsearch.InputError, match="resume needs the storage"):
        mpsearch.Execution(resume=True)


def test_a_storage_that_comes_back_loses_nothing(tmp_path, monkeypatch, evaluated):
    unbroken = content(search())
    add, away = optuna.Study.add_trial, [4]
    url = f"sqlite:///{tmp_path / 'study.db'}"

    def sometimes(self, trial):
        if self._storage.__class__.__name__ != "InMemoryStorage" and away[0]:
            away[0] -= 1
            raise ConnectionError("the server closed the connection")
        add(self, trial)

    monkeypatch.setattr(studies_, "_AGAIN", 0.01)
    monkeypatch.setattr(optuna.Study, "add_trial", sometimes)
    assert content(search(url)) == unbroken and not away[0]
    assert evaluated and len(set(evaluated)) == len(evaluated)


def test_a_storage_that_stays_away_ends_the_search_with_the_best_so_far(tmp_path, monkeypatch):
    unbroken = content(search())
    add, left = optuna.Study.add_trial, [3]
    url = f"sqlite:///{tmp_path / 'study.db'}"

    def no_more(self, trial):
        if self._storage.__class__.__name__ != "InMemoryStorage":
            left[0] -= 1
            if left[0] < 0:
                raise ConnectionError("the server closed the connection")
        add(self, trial)

    with monkeypatch.context() as patched:
        patched.setattr(studies_, "_PATIENCE", 0.02)
        patched.setattr(studies_, "_AGAIN", 0.01)
        patched.setattr(optuna.Study, "add_trial", no_more)
        cut = search(url)
    assert cut.status == "interrupted" and cut.error <= budget(3)
    assert any("server closed the connection" in note for note in cut.notes)
    assert any("Execution(resume=True) goes on" in note for note in cut.notes)
    assert content(search(url, resume=True)) == unbroken


def test_a_front_goes_on(tmp_path, evaluated):
    def front(**options):
        found = mpsearch.pareto(
            Planted(3), samples(3), points=3, execution=mpsearch.Execution(**options)
        )
        return found.as_dict()

    url = f"sqlite:///{tmp_path / 'study.db'}"
    unbroken = front()
    assert front(storage=url) == unbroken
    before = len(evaluated)
    assert front(storage=url, resume=True) == unbroken
    assert len(evaluated) == before


# --- from the command line -------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def result(folder="out"):
    found = json.loads((Path(folder) / "result.json").read_text())
    return {key: value for key, value in found.items() if key not in COST}


@pytest.mark.thorough
def test_a_killed_run_is_gone_on_with(here):
    """Over a former result, which stays whole until the new one takes its place."""
    run(*ARGV)
    unbroken = result()
    shutil.move("out", "unbroken")
    run(*ARGV[:-3], "2e-1", "-o", "out")
    former = result()
    code = (
        "import os, signal\n"
        "from mpsearch.search.study import Study\n"
        "add, count = Study.add, []\n"
        "def cut(self, *args):\n"
        "    add(self, *args)\n"
        "    count.append(1)\n"
        "    if len(count) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Study.add = cut\n"
        "from mpsearch.cli import main\n"
        f"main({ARGV!r})\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == -9 and result() == former
    assert Path("out/.search/study.db").exists()
    (study,) = optuna.get_all_study_summaries("sqlite:///out/.search/study.db")
    assert study.n_trials == 2
    run(*ARGV, "--resume")
    assert result() == unbroken and not Path("out/.search").exists()
    (study,) = optuna.get_all_study_summaries("sqlite:///out/study.db")
    assert study.n_trials > 2
    assert "study.db" in json.loads(Path("out/manifest.json").read_text())["files"]


_TIDYING = """
import os, signal, tempfile
from pathlib import Path
import mpsearch.temporary as temporary

def killed(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

if {moment!r} == "making":
    temporary.hold = Path.open = killed
folder = temporary.TemporaryFolder(Path("."), "folder-")
for name in ("a", "b", "c"):
    (folder.path / name).write_text(name)
    (folder.path / (name + name)).mkdir()
unlink, seen = os.unlink, []

def third(*args, **kwargs):
    unlink(*args, **kwargs)
    seen.append(args)
    if len(seen) == {count}:
        killed()

os.unlink = third
folder.close()
"""


@pytest.mark.parametrize(
    ("moment", "count"), [("making", 0), ("removing", 1), ("removing", 3), ("removing", 4)]
)
def test_a_process_killed_while_it_makes_or_removes_a_folder_leaves_none(moment, count, here):
    """The next one removes it, at once."""
    code = _TIDYING.format(moment=moment, count=count)
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == -9
    assert len(list(here.iterdir())) == 1
    with temporary_folder(here, "folder-") as made:
        assert list(here.iterdir()) == [made]
    assert list(here.iterdir()) == []


def test_two_runs_do_not_search_into_one_folder(here):
    with closing(Unfinished(here / "out", False)):
        said = run(*ARGV, expect=2).stderr
        assert "another run is searching into" in said and "Traceback" not in said
    assert not Path("out").exists()


def test_what_is_infeasible_leaves_nothing(here):
    run("optimize", "tests.models:Reciprocal", *ARGV[2:], expect=3)
    assert not Path("out").exists()


def test_resuming_what_was_never_begun_begins(here):
    run(*ARGV, "--resume")
    assert result()["status"] == "met"


@pytest.fixture
def small(here):
    """A file system of its own, of 256 KiB; its options can be changed."""
    folder = here / "small"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return subprocess.run(command, capture_output=True, check=False)

    mounted = mount("size=256k")
    if mounted.returncode:
        pytest.skip(f"mount: {mounted.stderr.decode().strip()}")
    yield folder, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.thorough
def test_a_disk_too_small_for_the_study_keeps_the_best_so_far(here, small):
    folder, remount = small
    (folder / "filler").write_bytes(bytes(60 << 10))
    said = run(*ARGV[:-1], "small/out", expect=2).stderr
    assert "full" in said or "No space left" in said
    assert "Traceback" not in said
    (folder / "filler").unlink()
    remount("size=8m")
    run(*ARGV[:-1], "small/out", "--resume")
    run(*ARGV)
    assert result("small/out") == result()


def test_a_read_only_folder_is_one_line_before_the_work(here, small):
    _, remount = small
    remount("size=8m")
    run(*ARGV[:-1], "small/out")
    before = result("small/out")
    remount("ro")
    for more in ([], ["--resume"]):
        said = run(*ARGV[:-1], "small/out", *more, expect=2).stderr
        assert said.startswith("error: cannot write") and len(said.splitlines()) == 1
        assert "Read-only file system" in said
    assert result("small/out") == before


# --- told of every trial ---------------------------------------------------------------------


def test_the_caller_is_told_of_every_trial_and_may_end_the_search():
    seen = []
    whole = search(on_trial=seen.append)
    assert len(seen) >= len(whole.trials) > 3
    assert {row.asked_by for row in whole.trials} <= {row.asked_by for row in seen}

    def enough(row):
        if row.asked_by == "propose":
            raise Stop

    cut = search(on_trial=enough)
    assert cut.status == "interrupted" and cut.error <= budget(3)
    assert "on_trial ended the search." in cut.notes

    def broken(row):
        raise ValueError("no such logger")

    with pytest.raises(mpsearch.InputError, match="on_trial failed: no such logger"):
        search(on_trial=broken)


def test_evaluations_fit_the_attributes_of_any_database_however_many_there_are():
    """MySQL takes 65,535 bytes of each."""
    draw = np.random.default_rng(0)
    found = {
        str(i): Evaluation(float(draw.random()), True, ("add",), (), 3, 0.1) for i in range(5_000)
    }
    error = draw.random(40_000).astype("<f4")
    found["long"] = Evaluation(np.inf, False, (), (error, None), 7, 0.5)
    attributes = json.loads(json.dumps(studies_._written(found)))
    assert max(len(json.dumps(value)) for value in attributes.values()) < 65_000
    read = studies_._read(attributes)
    assert read.keys() == found.keys() and all(read[str(i)] == found[str(i)] for i in range(5_000))
    assert read["long"].loss == np.inf and not read["long"].exact
    assert np.array_equal(read["long"].errors[0], error) and read["long"].errors[1] is None
