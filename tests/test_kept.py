"""Nothing is lost: what ends a run keeps what it found, and nothing of anybody's is replaced."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import mpsearch
import mpsearch.ending
from mpsearch import files
from mpsearch.cli.commands import main
from mpsearch.flows import outcome, running, searching
from mpsearch.package import emission
from mpsearch.result import Result
from tests.command import run
from tests.models import batches, net
from tests.planted import Planted
from tests.planted import samples as planted_samples

NET = "tests.models:net"
DATA = "tests.models:batches"
#: For processes of their own, which import this checkout.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
#: Overflows are left to the search, so that there is something to interrupt.
ARGV = ["optimize", NET, "--inputs", DATA, "--budget", "1e-2", "-o", "out", "--tolerate-overflow"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder):
    """Every file of a result, without the study of a later search that was cut short."""
    folder = Path(folder)
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.relative_to(folder).parts[0] != ".search"
    }


def status(folder):
    return json.loads((Path(folder) / "result.json").read_text())["status"]


# --- what ends a run -------------------------------------------------------------------------

#: What a run does, in order, once a set is known, and how to stand at its beginning.
MOMENTS = {
    "searching": (searching, "_searched"),
    "writing": (searching, "write"),
    "converting": (emission, "convert"),
    "describing": (searching, "outcome"),
    "bounding": (outcome, "lower_bound"),
    "measuring alone": (outcome.rows, "kept_ops"),
    "predicting": (outcome.rows, "op_rows"),
    "exponents": (outcome, "hint"),
    "remedies": (outcome.rows, "remedies"),
    "sealing": (outcome, "_built"),
    "rendering": (Result, "as_dict"),
    "saving": (Result, "save"),
    "renaming": (files, "_publish"),
}


def at(monkeypatch, moment, numbers):
    """Send this process signals when it comes to ``moment`` first."""
    place, name = MOMENTS[moment]
    original, sent = getattr(place, name), list(numbers)

    def call(*args, **kwargs):
        while sent:
            signal.raise_signal(sent.pop())
        return original(*args, **kwargs)

    monkeypatch.setattr(place, name, call)


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_keeps_the_set(moment, number, here, monkeypatch):
    at(monkeypatch, moment, [number])
    outcome_ = CliRunner().invoke(main, ARGV)
    assert outcome_.exit_code in (0, 130), outcome_.output
    assert (outcome_.exit_code == 130) == (status("out") == "interrupted")
    assert "before anything was found" not in outcome_.output
    result = json.loads(Path("out/result.json").read_text())
    assert result["error"] <= 1e-2
    if moment not in ("searching",):
        assert len(result["fp32_ops"]) < result["candidate_ops"]
    assert files.foreign(Path("out")) is None and Path("out/model.mlpackage").is_dir()


@pytest.mark.thorough
@pytest.mark.parametrize("moment", ["bounding", "measuring alone", "exponents"])
def test_a_second_signal_ends_the_extras(moment, here, monkeypatch):
    at(monkeypatch, moment, [signal.SIGINT, signal.SIGINT])
    run(*ARGV)
    result = json.loads(Path("out/result.json").read_text())
    assert result["status"] == "met" and result["not_measured"]
    assert any("report" in note for note in result["notes"])


def test_a_signal_before_a_set_is_known_says_so(here, monkeypatch):
    original = running.prepare

    def prepare(*args, **kwargs):
        signal.raise_signal(signal.SIGTERM)
        return original(*args, **kwargs)

    monkeypatch.setattr(running, "prepare", prepare)
    outcome_ = run(*ARGV, expect=130)
    assert outcome_.stderr == "interrupted: before anything was found\n"
    assert not Path("out").exists()


@pytest.mark.thorough
def test_signals_that_are_ignored_stay_ignored(here):
    """As under nohup: SIGHUP is set to be ignored by who starts the program."""
    code = (
        "import signal, sys\n"
        "import threading, os, time\n"
        "all_ = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)\n"
        "for s in all_: signal.signal(s, signal.SIG_IGN)\n"
        "def shout():\n"
        "    while True:\n"
        "        time.sleep(0.05)\n"
        "        for s in all_: os.kill(os.getpid(), s)\n"
        "threading.Thread(target=shout, daemon=True).start()\n"
        "from mpsearch.cli import main\n"
        f"main({ARGV!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert status("out") == "met"


@pytest.mark.thorough
def test_handlers_are_put_back(here):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    run(*ARGV)
    mpsearch.optimize(net(), batches(), 1e-2, execution=mpsearch.Execution(progress=False))
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.thorough
@pytest.mark.parametrize("timeout", [1e-9, 0.05, 0.3])
def test_the_answer_of_a_short_run_is_the_rankings_boundary_or_better(timeout):
    model, data = Planted(0).eval(), planted_samples(0)
    whole = mpsearch.optimize(model, data, 1e-3, execution=mpsearch.Execution(progress=False))
    short = mpsearch.optimize(
        model,
        data,
        1e-3,
        limits=mpsearch.Limits(timeout=timeout),
        execution=mpsearch.Execution(progress=False),
    )
    assert short.error <= 1e-3 and short.status in ("met", "interrupted")
    if timeout >= 0.3:
        assert len(short.fp32_ops) < short.candidate_ops
        assert len(short.fp32_ops) <= 3 * max(1, len(whole.fp32_ops))


@pytest.mark.thorough
def test_the_time_for_the_search_starts_when_conversion_is_done(monkeypatch):
    original = running.prepare

    def slow(*args, **kwargs):
        time.sleep(1.5)
        return original(*args, **kwargs)

    monkeypatch.setattr(running, "prepare", slow)
    result = mpsearch.optimize(
        net(),
        batches(),
        1e-2,
        limits=mpsearch.Limits(timeout=60),
        execution=mpsearch.Execution(progress=False),
    )
    assert result.status == "met" and result.seconds > 1.5
    at_once = mpsearch.optimize(
        net(),
        batches(),
        1e-2,
        limits=mpsearch.Limits(timeout=1.4),
        execution=mpsearch.Execution(progress=False),
    )
    assert at_once.evaluations > 2  # conversion took longer than that


def test_no_forward_is_begun_after_the_deadline(monkeypatch):
    """Counted in evaluations, not in seconds: the clock stands still and then jumps."""
    now = [0.0]
    monkeypatch.setattr(mpsearch.ending.time, "monotonic", lambda: now[0])
    from mpsearch.evaluation.incremental import Incremental

    original, begun = Incremental.run, []

    def forward(self, *args, **kwargs):
        begun.append(now[0])
        now[0] += 1.0
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Incremental, "run", forward)
    result = mpsearch.optimize(
        Planted(0).eval(),
        planted_samples(0),
        1e-3,
        limits=mpsearch.Limits(timeout=4.0),
        execution=mpsearch.Execution(progress=False),
    )
    assert result.status == "interrupted" and result.error <= 1e-3
    assert max(begun) <= 5.0


def test_a_search_that_its_time_ends_has_done_what_was_asked(here):
    outcome_ = run(*ARGV, "--timeout", "1e-9")
    assert status("out") == "interrupted" and "the time was up" in outcome_.output


# --- what a worse result replaces ------------------------------------------------------------


@pytest.mark.thorough
def test_an_interrupted_run_is_written_beside_a_complete_result(here, monkeypatch):
    run(*ARGV)
    before = contents("out")
    at(monkeypatch, "searching", [signal.SIGINT])
    outcome_ = run(*ARGV, expect=130)
    assert contents("out") == before
    assert status("out-interrupted") == "interrupted"
    assert "out-interrupted" in outcome_.output and "kept" in outcome_.stderr
    at(monkeypatch, "searching", [signal.SIGINT])
    run(*ARGV, expect=130)  # and again: it replaces its own kind
    assert contents("out") == before and status("out-interrupted") == "interrupted"


@pytest.mark.thorough
def test_a_complete_result_replaces_an_interrupted_one(here, monkeypatch):
    with monkeypatch.context() as patched:
        at(patched, "searching", [signal.SIGINT])
        run(*ARGV, expect=130)
    assert status("out") == "interrupted"
    run(*ARGV)
    assert status("out") == "met"


# --- what is never replaced ------------------------------------------------------------------


@pytest.fixture
def thesis(here):
    """A former result, with somebody's file in it."""
    run(*ARGV)
    Path("out/thesis.tex").write_text("years of work")
    return contents("out")


def test_a_result_with_somebodys_file_in_it_is_not_replaced(thesis):
    outcome_ = run(*ARGV, expect=2)
    assert "thesis.tex" in outcome_.stderr and contents("out") == thesis


def test_a_folder_that_only_looks_like_a_result_is_not_replaced(here):
    Path("out").mkdir()
    Path("out/result.json").write_text("{}")
    before = contents("out")
    assert "not replaced" in run(*ARGV, expect=2).stderr
    assert contents("out") == before


@pytest.mark.thorough
def test_files_that_appear_while_the_search_runs_are_kept(here, monkeypatch):
    run(*ARGV)
    original = outcome._built

    def built(*args, **kwargs):
        Path("out/thesis.tex").write_text("years of work")
        return original(*args, **kwargs)

    monkeypatch.setattr(outcome, "_built", built)
    outcome_ = run(*ARGV, expect=2)
    assert "thesis.tex" in outcome_.stderr
    assert Path("out/thesis.tex").read_text() == "years of work"
    assert "FP32" in outcome_.stdout  # what was found is shown where it cannot be written


def test_model_explorer_replaces_only_what_it_wrote(here):
    Path("folder").mkdir()
    Path("folder/thesis.tex").write_text("years of work")
    Path("data.json").write_text('{"results": "of years"}')
    command = ["analyze", NET, "--inputs", DATA, "--model-explorer"]
    for theirs in ("folder", "data.json"):
        assert "not replaced" in run(*command, theirs, expect=2).stderr
    assert contents("folder") == {"thesis.tex": b"years of work"}
    assert Path("data.json").read_text() == '{"results": "of years"}'
    for _ in range(2):
        run(*command, "graph.json")
    assert {p.name for p in here.glob("graph*")} == {
        "graph.json",
        "graph.verdict.json",
        "graph.sensitivity.json",
    }


@pytest.mark.thorough
def test_apply_replaces_only_packages_of_ours(here):
    run(*ARGV)
    apply = ["apply", "out", NET, "-o"]
    Path("file.mlpackage").write_text("a file")
    Path("folder.mlpackage").mkdir()
    Path("folder.mlpackage/thesis.tex").write_text("years of work")
    import coremltools as ct

    traced = torch.jit.trace(net().eval(), batches()[0])
    ct.convert(traced, inputs=[ct.TensorType("x", (1, 4, 8))], skip_model_load=True).save(
        "theirs.mlpackage"
    )
    theirs = contents("theirs.mlpackage")
    for name in ("file", "folder", "theirs"):
        assert "not replaced" in run(*apply, f"{name}.mlpackage", expect=2).stderr
    assert Path("file.mlpackage").read_text() == "a file"
    assert contents("folder.mlpackage") == {"thesis.tex": b"years of work"}
    assert contents("theirs.mlpackage") == theirs
    run(*apply, "ours.mlpackage")
    run(*apply, "ours.mlpackage")


def test_a_link_is_not_followed_to_what_it_names(here):
    run(*ARGV)
    Path("out").rename("elsewhere")
    Path("out").symlink_to("elsewhere")
    before = contents("elsewhere")
    assert "link" in run(*ARGV, expect=2).stderr
    assert contents("elsewhere") == before


# --- the exchange ----------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_rename_that_fails_leaves_one_result_whole(atomic, failing, here, monkeypatch):
    """Whichever of the renames fails, where the system can exchange and where it cannot."""
    run(*ARGV)
    before = contents("out")
    calls = []

    def fails():
        calls.append(1)
        if len(calls) == failing + 1:
            raise OSError(errno.EIO, "input/output error")

    rename, exchange = os.rename, files._exchange

    def renamed(*args, **kwargs):
        fails()
        return rename(*args, **kwargs)

    def exchanged(a, b):
        if not atomic:
            return False
        fails()
        return exchange(a, b)

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "rename", renamed)
        patched.setattr(files, "_exchange", exchanged)
        code = CliRunner().invoke(main, ARGV).exit_code
    now = contents("out")
    assert files.foreign(Path("out")) is None and (code == 0 or now == before)
    assert sorted(p.name for p in here.iterdir()) == ["out"]


@pytest.mark.thorough
def test_a_run_killed_between_two_renames_is_put_right_by_the_next(here, monkeypatch):
    """Where the system cannot exchange: the former result stands aside for a moment."""
    run(*ARGV)
    before = contents("out")
    code = (
        "import os, signal\n"
        "from mpsearch import files\n"
        "files._exchange = lambda a, b: False\n"
        "rename, calls = os.rename, []\n"
        "def renamed(a, b):\n"
        "    calls.extend([1] * str(b).endswith('out'))\n"
        "    if len(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    rename(a, b)\n"
        "files.os.rename = renamed\n"
        "from mpsearch.cli import main\n"
        f"main({ARGV!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=ENVIRONMENT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL and not Path("out").exists()
    with pytest.raises(RuntimeError), files.written(here / "out", files.foreign):
        assert contents("out") == before  # the temporary folder that was asked for has put it back
        raise RuntimeError
    assert contents("out") == before
    assert sorted(p.name for p in here.iterdir()) == ["out"]


# --- a full disk -----------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_disk_that_fills_while_the_package_is_written_keeps_the_choice(here, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(searching, "write", full)
        outcome_ = CliRunner().invoke(main, ARGV)
    assert outcome_.exit_code not in (0, 130)
    assert status("out") == "unwritten" and "No space left" in outcome_.output
    assert {p.name for p in Path("out").iterdir()} >= {"op_selector.py", "precision.json"}
    run("apply", "out", NET, "-o", "later.mlpackage")
    run(*ARGV)
    assert status("out") == "met"


@pytest.mark.thorough
def test_a_disk_that_fills_while_the_result_is_saved_shows_it_and_says_why(here, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run(*ARGV)
    before = contents("out")
    with monkeypatch.context() as patched:
        patched.setattr(Result, "as_dict", full)
        outcome_ = run(*ARGV, expect=2)
    assert "No space left" in outcome_.stderr and "None" not in outcome_.stderr
    assert contents("out") == before and sorted(p.name for p in here.iterdir()) == ["out"]


# --- litter ----------------------------------------------------------------------------------


@pytest.mark.thorough
def test_what_killed_runs_left_is_swept_and_what_others_use_is_not(here, monkeypatch):
    code = (
        "import time\n"
        "from pathlib import Path\n"
        "from mpsearch.files import written\n"
        "with written(Path('out'), lambda path: None) as made:\n"
        "    made.write_text('half')\n"
        "    print(made.parent, flush=True)\n"
        "    time.sleep(600)\n"
    )
    rooms = []
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        rooms.append((process, Path(process.stdout.readline().strip())))
    (killed, left), (alive, used) = rooms
    try:
        killed.kill()
        killed.wait()
        assert left.exists()
        run(*ARGV)
        assert not left.exists() and used.exists()
    finally:
        alive.kill()
        alive.wait()
    run(*ARGV)
    assert sorted(p.name for p in here.iterdir()) == ["out"]


@pytest.mark.thorough
def test_a_result_that_is_held_outlives_the_runs_of_others(here, monkeypatch):
    """The package of a result that was not saved yet stands in a temporary folder."""
    held = mpsearch.optimize(net(), batches(), 1e-2, execution=mpsearch.Execution(progress=False))
    run(*ARGV)
    held.save("held")
    assert files.foreign(Path("held")) is None and Path("held/model.mlpackage").is_dir()


@pytest.mark.thorough
def test_nothing_is_left_in_the_folder_for_temporary_files(here, monkeypatch, tmp_path_factory):
    place = tmp_path_factory.mktemp("tmp")
    command = [sys.executable, "-c", "from mpsearch.cli import main; main()", *ARGV]
    environment = {**ENVIRONMENT, "TMPDIR": str(place)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not list(place.glob("mpsearch-*")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert list(place.glob("mpsearch-*"))
    done = subprocess.run(command, env=environment, check=False, capture_output=True)
    assert done.returncode == 0 and not list(place.glob("mpsearch-*"))
