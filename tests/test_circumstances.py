"""What surrounds a run: streams, signals, the environment, temporary files, odd paths."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import torch

import mpsearch
from mpsearch.files import foreign
from tests.command import run
from tests.models import batches, net

ROOT = Path(__file__).parent.parent
ARGV = ["optimize", "tests.models:net", "--inputs", "tests.models:batches", "--budget", "1e-2"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to stand in, and another one for temporary files."""
    place = tmp_path / "here"
    (tmp_path / "tmp").mkdir()
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def environment(**more):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def shell(script, **more):
    """A script of the shell, in which ``mpsearch`` is the command."""
    script = f'mpsearch() {{ "{sys.executable}" -m mpsearch "$@"; }}\n{script}'
    return subprocess.run(
        ["bash", "-c", script], env=environment(**more), capture_output=True, text=True, check=False
    )


# --- streams and environment ------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-"])
def test_closed_streams_lose_nothing(closed, here):
    """Files that are opened would take their numbers, and native code would print into them."""
    done = shell(f"mpsearch {' '.join(ARGV)} --out out {closed}")
    assert done.returncode == 0
    assert foreign(Path("out")) is None and Path("out/model.mlpackage").is_dir()


@pytest.mark.thorough
@pytest.mark.parametrize("arguments", ["--help", "optimize --help", " ".join([*ARGV, "-o", "out"])])
def test_a_reader_that_goes_away_is_no_failure(arguments, here):
    assert shell(f"mpsearch {arguments} | true; exit ${{PIPESTATUS[0]}}").returncode == 0


@pytest.mark.thorough
def test_variables_that_libraries_fail_at_are_left_out(here):
    done = shell(
        f"mpsearch {' '.join(ARGV)} --out out", MPLBACKEND="nonsense", SOURCE_DATE_EPOCH="abc"
    )
    assert done.returncode == 0, done.stderr
    assert Path("out/report.html").is_file()


def test_a_report_that_cannot_be_drawn_loses_nothing(here, monkeypatch, caplog):
    monkeypatch.setattr("mpsearch.report.html.render", lambda *_: 1 / 0)
    run(*ARGV, "--out", "out")
    assert foreign(Path("out")) is None and Path("out/model.mlpackage").is_dir()
    assert not Path("out/report.html").exists()
    assert "report.html was not written (ZeroDivisionError" in caplog.text


# --- signals ----------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("seconds", [0.1, 1.0, 2.0, 3.0])
def test_ctrl_c_ends_a_command_that_loads(seconds, here):
    """By the processor time that it has used: the machine may be busy."""
    folder = here.parent / "tmp"
    process = subprocess.Popen(
        [sys.executable, "-m", "mpsearch", *ARGV, "--out", "new/out", "--timeout", "600"],
        env=environment(TMPDIR=str(folder)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    used = psutil.Process(process.pid)
    while process.poll() is None and sum(used.cpu_times()[:2]) < seconds:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    if process.returncode == 0:  # it had found the set: the best so far is written
        assert (here / "new" / "out" / "manifest.json").is_file()
        return
    assert process.returncode == 130 and stdout == ""
    if seconds > 0.1:  # before, the interpreter itself is starting
        assert stderr.count("\n") == 1 and stderr.startswith("interrupted")
    assert not list(folder.iterdir()) and not list(here.iterdir())


@pytest.mark.thorough
def test_a_stopped_worker_is_done_without(here):
    """SIGSTOP, as a debugger or a batch system sends it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mpsearch", *ARGV, "--out", "out", "--jobs", "2"],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    parent = psutil.Process(process.pid)
    while process.poll() is None:
        for child in parent.children():
            child.suspend()
        time.sleep(0.05)
    assert process.wait() == 0, process.stderr.read()


# --- files ------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["a?b#c", "100%{0}", "[x] 'y'", "?mode=memory"])
def test_outputs_stand_where_they_were_asked_for(name, here):
    run(*ARGV, "--out", f"{name}/out")
    assert [p.name for p in here.iterdir()] == [name]
    assert [p.name for p in (here / name).iterdir()] == ["out"]
    assert (here / name / "out" / "study.db").is_file()
    run(*ARGV, "--out", f"{name}/out", "--resume")


def test_a_path_that_is_too_long_leaves_nothing(here):
    said = run(*ARGV, "--out", "/".join(["d" * 100] * 50), expect=2)
    assert len(said.stderr) < 1000 and not list(here.iterdir())


@pytest.mark.thorough
def test_folders_of_others_are_left_alone(here, monkeypatch):
    """Whatever their names: only a marker that mpsearch wrote says that it made a folder."""
    folder = here.parent / "tmp"
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    run(*ARGV, "--out", str(folder / "mpsearch-mixed"))
    for name in ("mpsearch-thesis", "mpsearch-locked"):
        (folder / name).mkdir()
        (folder / name / "thesis.tex").write_text("years of work")
    (folder / "mpsearch-locked" / ".lock").touch()
    (folder / "mpsearch-link").symlink_to(folder / "mpsearch-thesis")
    before = sorted(p.name for p in folder.rglob("*"))
    for path in folder.iterdir():
        os.utime(path, (0, 0), follow_symlinks=False)
    run("check", str(folder / "mpsearch-mixed"), *ARGV[1:4])
    run(*ARGV, "--out", "out")
    assert sorted(p.name for p in folder.rglob("*")) == before


@pytest.mark.parametrize("link", [".search", ".search/study.db", ".search/lock"])
def test_nothing_is_written_or_removed_behind_a_link(link, here):
    decoy = here.parent / "decoy"
    decoy.mkdir()
    (decoy / "study.db").write_text("years of work")
    target = here / "out" / link
    target.parent.mkdir(parents=True)
    target.symlink_to(decoy if link == ".search" else decoy / "study.db")
    said = run(*ARGV, "--out", "out", expect=2)
    assert said.stderr.startswith("error: ") and said.stderr.count("\n") == 1
    assert (decoy / "study.db").read_text() == "years of work"
    assert [p.name for p in decoy.iterdir()] == ["study.db"]


def test_calls_from_python_leave_no_temporary_files(here, monkeypatch):
    """While a result lives, its package stands there once."""
    folder = here.parent / "tmp"
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    result = mpsearch.optimize(net(), batches(), 1e-2)
    held = [p for p in folder.rglob("*.mlpackage") if p.is_dir()]
    assert len(held) == 1
    result.save("out")
    assert mpsearch.check("out", net(), batches()).holds
    mpsearch.analyze(net(), batches())
    applied = mpsearch.apply("out", net(), batches())
    applied.save("applied.mlpackage")
    again = mpsearch.optimize("out/model.mlpackage", batches(), 1e-2) if result.kept == () else None
    del result, applied, again
    gc.collect()
    assert not list(folder.iterdir())


def test_modes_and_threads_are_as_before(here):
    torch.manual_seed(3)
    before = torch.get_rng_state(), torch.is_grad_enabled(), torch.get_num_threads()
    model = torch.jit.trace(net().eval(), batches()[0])
    torch.jit.save(model, "net.pt")
    state = torch.get_rng_state()
    mpsearch.optimize("net.pt", batches(), 1e-2)
    assert torch.equal(state, torch.get_rng_state())
    assert before[1:] == (torch.is_grad_enabled(), torch.get_num_threads())
