"""Evaluates ahead, in processes of their own, what a search is likely to ask next.

A search is sequential: what it asks next follows from the answers so far. But most answers can be
guessed (pruning asks about one unit after another, and most cannot be cast), so that idle cores
evaluate what will be asked if the guess is right. Guesses decide nothing: a search asks the same,
gets the same answers, and records the same trials whatever was evaluated ahead, and by how many.

The processes are forked, so that weights and what was computed so far are shared, not copied.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from ..ending import Stop
from ..errors import InputError
from ..program.precision import Precision
from .store import Answer

#: Of what was evaluated ahead and never asked for, so many answers are remembered.
_UNASKED = 256


@dataclass(frozen=True, slots=True)
class Call:
    """An evaluation: what it is found by, and what it takes."""

    key: str
    precision: Precision
    searched: tuple[int, ...]
    limit: float


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


class Ahead:
    """Workers that evaluate what is expected.

    Parameters
    ----------
    evaluate
        Evaluates a call; run in the workers, and here where one is waited for.
    jobs
        How many processes evaluate, this one included.
    """

    def __init__(self, evaluate: Callable[[Call], Answer], jobs: int) -> None:
        self._evaluate, self._jobs = evaluate, jobs
        self._workers: list[_Worker] = []
        self._answers: dict[str, Answer] = {}
        self._waiting: list[Call] = []

    def expect(self, calls: Sequence[Call]) -> None:
        """Evaluate these, the likeliest first, instead of what was expected before."""
        if not self._workers:
            self._workers = [_Worker(self._evaluate) for _ in range(self._jobs - 1)]
        under_way = {worker.call.key for worker in self._workers if worker.call is not None}
        self._waiting = [c for c in calls if c.key not in under_way and c.key not in self._answers]
        self._hand_out()

    def take(self, key: str) -> Answer | None:
        """The answer to a call, where it was expected; waits for one that is under way.

        Meanwhile the next that is expected is evaluated here.

        Raises
        ------
        Stop
            If the run is to end.
        """
        self._collect()
        while (worker := self._at(key)) is not None:
            if self._waiting and not worker.done:
                ahead = self._waiting.pop(0)
                self._learn(ahead.key, self._evaluate(ahead))
            else:
                wait([worker.pipe], 0.1)
            self._collect()
        return self._answers.pop(key, None)

    def _at(self, key: str) -> _Worker | None:
        return next((w for w in self._workers if w.call is not None and w.call.key == key), None)

    def _collect(self) -> None:
        """Take what is done, and hand out more."""
        for worker in self._workers:
            if worker.call is not None and worker.done:
                key, answer = worker.call.key, worker.result()
                if answer is not None:
                    self._learn(key, answer)
        self._hand_out()

    def _hand_out(self) -> None:
        for worker in self._workers:
            if worker.call is None and worker.alive and self._waiting:
                worker.begin(self._waiting.pop(0))

    def _learn(self, key: str, answer: Answer) -> None:
        self._answers[key] = answer
        while len(self._answers) > _UNASKED:
            self._answers.pop(next(iter(self._answers)))

    def close(self) -> None:
        """End the workers, and forget what was evaluated ahead."""
        for worker in self._workers:
            worker.close()
        self._workers, self._waiting = [], []
        self._answers.clear()


class _Worker:
    """A forked process that evaluates one call at a time."""

    def __init__(self, evaluate: Callable[[Call], Answer]) -> None:
        context: Any = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.call: Call | None = None
        self._process = context.Process(
            target=_work, args=(theirs, self.pipe, evaluate), daemon=True
        )
        self._process.start()
        theirs.close()
        self._end = weakref.finalize(self, _end, self._process, self.pipe)

    @property
    def alive(self) -> bool:
        return bool(self._process.is_alive())

    @property
    def done(self) -> bool:
        """Whether there is a result, or will be none."""
        return bool(self.pipe.poll()) or not self.alive

    def begin(self, call: Call) -> None:
        self.call = call
        with contextlib.suppress(OSError):  # it has died: `done` says so
            self.pipe.send(call)

    def result(self) -> Answer | None:
        """The answer; None where the worker has none, so that it is evaluated here."""
        self.call = None
        try:
            found: Answer | None = self.pipe.recv()
        except (EOFError, OSError):
            return None
        return found

    def close(self) -> None:
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
