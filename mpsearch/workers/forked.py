"""Workers on this machine, forked: weights and what was computed so far are shared, not copied."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import weakref
from multiprocessing.connection import Connection, wait
from typing import Any

from ..errors import InputError
from ..forking import received, runs, settle
from ..search.answer import Answer
from ..search.answering import Answerer, Call, Part, Piece


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
        return [Fork(answerer) for _ in range(self._jobs - 1)]


class Fork:
    """A forked process (:class:`mpsearch.search.ahead.Helper`)."""

    def __init__(self, answerer: Answerer) -> None:
        context: Any = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self.call: Call | None = None
        self._abandoned = False
        self.process = context.Process(
            target=_work, args=(theirs, self._pipe, answerer), daemon=True
        )
        self.process.start()
        theirs.close()
        self._end = weakref.finalize(self, _end, self.process, self._pipe)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return runs(self.process)

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
        """The answer; None where the process died or failed, or nobody waits for it."""
        found, abandoned = self._received(), self._abandoned
        self._abandoned = False
        return None if abandoned else found

    def help(self, part: Part) -> None:
        """Evaluate this part."""
        self.call = part.call
        with contextlib.suppress(OSError):
            self._pipe.send(part)

    def piece(self) -> Piece | None:
        """What the part gave; None where the process died or failed."""
        found: Piece | None = self._received()
        return found

    def abandon(self) -> None:
        """Nobody waits for the part any more."""
        self._abandoned = True

    def _received(self) -> Any:
        self.call = None
        try:
            return received(self._pipe, self.process)
        except (EOFError, OSError):
            return None

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


def _work(pipe: Connection, parents: Connection, answerer: Answerer) -> None:
    """A worker's life: until the parent closes the pipe, or dies."""
    settle(parents)
    with contextlib.suppress(EOFError, OSError):
        while True:
            asked: Call | Part = pipe.recv()
            found: Answer | Piece | None = None
            with contextlib.suppress(Exception):  # the parent meets it too, and says what it is
                if isinstance(asked, Part):
                    found = answerer.piece(asked)
                else:
                    found = answerer.ahead(asked)
            pipe.send(found)
    os._exit(0)
