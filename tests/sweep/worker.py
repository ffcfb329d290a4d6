"""Runs in processes of their own, forked from one that has imported everything."""

from __future__ import annotations

import atexit
import faulthandler
import importlib
import json
import os
import pkgutil
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import mpsearch

from .draw import Run, draw
from .run import Outcome, judged

#: Seconds that a run may take.
LIMIT = 300.0
#: Modules that need what is not installed everywhere.
_OPTIONAL = ("mpsearch.training", "mpsearch.workers.dask")


@dataclass(frozen=True)
class Report:
    """A run, how it ended, and how long it took: by the clock, and of a core."""

    run: Run
    kind: str
    failures: tuple[str, ...]
    seconds: float
    core: float

    def __str__(self) -> str:
        return (
            f"seed {self.run.seed}: {'; '.join(self.failures)}\n"
            f"    {described(self.run)}\n"
            f"    again: python -m tests.sweep --only {self.run.seed}"
        )


def described(run: Run) -> str:
    """A run in a line."""
    options = ", ".join(f"{k}={v!r}" for k, v in run.options.items())
    made = f", made with {run.made}" if run.made else ""
    wrong = f", wrong: {run.wrong}" if run.wrong else ""
    return (
        f"{'mpsearch' if run.shell else 'mpsearch.'}{' ' if run.shell else ''}{run.command} of "
        f"{run.architecture} {run.weights} as {run.source} {run.variant}, {run.samples} samples "
        f"({run.form}), budget {run.budget:.3g}: {options}{made}{wrong}"
    )


def warm() -> None:
    """Import what mpsearch imports late, once for all runs."""
    for module in pkgutil.walk_packages(mpsearch.__path__, "mpsearch."):
        if not module.name.startswith(_OPTIONAL) and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    torch.set_num_threads(1)


class Child:
    """A run under way."""

    def __init__(self, seed: int) -> None:
        self.run = draw(seed)
        self.folder = Path(tempfile.mkdtemp(prefix=f"sweep-{seed}-"))
        self.started = time.perf_counter()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _inside(self.run, self.folder)

    def ended(self) -> Report | None:
        """The report, where it has ended or its time is over."""
        seconds = time.perf_counter() - self.started
        pid, status, used = os.wait4(self.pid, os.WNOHANG)
        self.core = used.ru_utime + used.ru_stime
        if not pid and seconds < LIMIT:
            return None
        if not pid:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return self._report(Outcome("hang", [f"it takes more than {LIMIT:g} seconds"]), seconds)
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            return self._report(Outcome("crash", [f"it ends by {name}"]), seconds)
        try:
            found = Outcome(**json.loads((self.folder / "outcome.json").read_text()))
        except OSError:
            said = (self.folder / "log").read_text(errors="replace")[-500:]
            found = Outcome("crash", [f"it ends with {os.WEXITSTATUS(status)}: {said}"])
        if left := os.listdir(self.folder / "tmp"):
            found.fail(f"left in TMPDIR at the end: {sorted(left)}")
        return self._report(found, seconds)

    def _report(self, found: Outcome, seconds: float) -> Report:
        if not os.environ.get("SWEEP_KEEP"):
            shutil.rmtree(self.folder, ignore_errors=True)
        return Report(self.run, found.kind, tuple(found.failures), seconds, self.core)


def _inside(run: Run, folder: Path) -> None:
    """The child's own life, from the fork to its end."""
    os.setsid()
    os.environ["TMPDIR"] = str(folder / "tmp")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")  # torch.export's own
    (folder / "tmp").mkdir()
    tempfile.tempdir = None
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # pytest has put others in their place.
    sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
    faulthandler.enable()
    code = 0
    # What the parent has to clean up is not the child's.
    atexit._clear()
    weakref.finalize._registry.clear()
    weakref.finalize._registered_with_atexit = False
    try:
        warnings.simplefilter("ignore")
        outcome = judged(run, folder)
    except BaseException:
        outcome = Outcome("broken", [" ".join(traceback.format_exc().split())[-1500:]])
    try:
        (folder / "outcome.json").write_text(json.dumps(vars(outcome)))
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        code = 70
    finally:
        os._exit(code)


def attempt(seed: int) -> Report:
    """Do one run."""
    child = Child(seed)
    while True:
        if (report := child.ended()) is not None:
            return report
        time.sleep(0.02)


def sweep(seeds: list[int], jobs: int, show: Callable[[Report], None]) -> list[Report]:
    """Do many, so many at a time; ``show`` is called with each as it ends."""
    waiting, under_way, done = list(reversed(seeds)), [], []
    while waiting or under_way:
        while waiting and len(under_way) < jobs:
            under_way.append(Child(waiting.pop()))
        time.sleep(0.02)
        for child in list(under_way):
            if (report := child.ended()) is not None:
                under_way.remove(child)
                done.append(report)
                show(report)
    return done
