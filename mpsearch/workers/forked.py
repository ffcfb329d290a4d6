"""Workers on this machine, forked: weights and what was computed so far are shared, not copied."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from ..ending import Stop
from ..errors import InputError
from ..search.answering import Answerer, Call
from ..search.store import Answer


def check_jobs(jobs: int, device: str) -> None:
    """Fail early where several processes cannot evaluate.

    Raises
    ------
    InputError
        Off the CPU, and where processes cannot be forked.
    """
    if jobs > 1 and (device != "cpu" or not hasattr(os, "fork")):
        where = f"device {device}" if device != "cpu" else "this system, which cannot fork"
        raise InputError(f"jobs is {jobs}, expected 1 for {where}; leave it out")


class Forks:
    """Gives forked workers: so many processes evaluate, this one included."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs

    def hire(self, answerer: Answerer) -> list[Fork]:
        """Workers that know what this process knows now."""
        return [Fork(answerer.ahead) for _ in range(self._jobs - 1)]


class Fork:
    """A forked process (:class:`mpsearch.search.ahead.Worker`)."""

    def __init__(self, evaluate: Callable[[Call], Answer]) -> None:
        context: Any = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self.call: Call | None = None
        self.process = context.Process(
            target=_work, args=(theirs, self._pipe, evaluate), daemon=True
        )
        self.process.start()
        theirs.close()
        self._end = weakref.finalize(self, _end, self.process, self._pipe)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return bool(self.process.is_alive())

    @property
    def done(self) -> bool:
        """Whether there is a result, or will be none."""
        return bool(self._pipe.poll()) or not self.alive

    def begin(self, call: Call) -> None:
        """Evaluate this."""
        self.call = call
        with contextlib.suppress(OSError):  # it has died: `done` says so
            self._pipe.send(call)

    def result(self) -> Answer | None:
        """The answer; None where the process died or failed."""
        self.call = None
        try:
            found: Answer | None = self._pipe.recv()
        except (EOFError, OSError):
            return None
        return found

    def wait(self, seconds: float) -> None:
        """Wait until it is done, so long at most."""
        wait([self._pipe], seconds)

    def close(self) -> None:
        """Kill it."""
        self._end()


def _end(process: Any, pipe: Connection) -> None:
    process.kill()
    process.join()
    pipe.close()


def _work(pipe: Connection, parents: Connection, evaluate: Callable[[Call], Answer]) -> None:
    """A worker's life: until the parent closes the pipe, or dies."""
    parents.close()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # those are for the parent, which ends its workers
    torch.set_num_threads(1)  # the threads of the parent are not there any more
    with contextlib.suppress(EOFError, OSError):
        while True:
            call = pipe.recv()
            try:
                answer: Answer | None = evaluate(call)
            except (Stop, Exception):  # the parent meets it too, and says what it is
                answer = None
            pipe.send(answer)
    os._exit(0)
