"""Evaluates ahead, in other processes, what a search is likely to ask next.

A search is sequential: what it asks next follows from the answers so far. But most answers can be
guessed (pruning asks about one unit after another, and most cannot be cast), so that idle cores
evaluate what will be asked if the guess is right. Guesses decide nothing: a search asks the same,
gets the same answers, and records the same trials whatever was evaluated ahead, and by how many.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from .answer import Answer
from .answering import Answerer, Call, Part, Piece

#: Of what was evaluated ahead and never asked for, so many answers are remembered.
_UNASKED = 256
#: How often to look whether a worker is done, in seconds.
_LOOK = 0.1


class Worker(Protocol):
    """Evaluates one call at a time, in another process.

    Attributes
    ----------
    call
        What it evaluates; None where it is free.
    """

    call: Call | None

    @property
    def alive(self) -> bool:
        """Whether it can evaluate."""

    @property
    def done(self) -> bool:
        """Whether there is a result, or will be none."""

    def begin(self, call: Call) -> None:
        """Evaluate this."""

    def result(self) -> Answer | None:
        """The answer; None where the worker has none, so that it is evaluated here."""

    def wait(self, seconds: float) -> None:
        """Wait until it is done, so long at most."""

    def close(self) -> None:
        """End what it is doing."""


@runtime_checkable
class Helper(Worker, Protocol):
    """A worker that is near enough to evaluate a part of what is asked now."""

    def help(self, part: Part) -> None:
        """Evaluate this part."""

    def piece(self) -> Piece | None:
        """What the part gave; waits for it. None where the worker died."""

    def abandon(self) -> None:
        """Nobody waits for the part any more."""


#: Gives the workers for one set of samples.
Hire = Callable[[Answerer], Sequence[Worker]]


class Ahead:
    """Has workers evaluate what is expected.

    Parameters
    ----------
    answerer
        Evaluates here while a worker is waited for.
    hire
        Gives the workers, when first something is expected.
    """

    def __init__(self, answerer: Answerer, hire: Hire) -> None:
        self._answerer, self._hire = answerer, hire
        self._workers: list[Worker] = []
        self._hired = False
        self._answers: dict[str, Answer] = {}
        self._waiting: list[Call] = []

    def expect(self, calls: Sequence[Call]) -> None:
        """Evaluate these, the likeliest first, instead of what was expected before."""
        self._ready()
        under_way = {worker.call.key for worker in self._workers if worker.call is not None}
        self._waiting = [c for c in calls if c.key not in under_way and c.key not in self._answers]
        self._collect()

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
                self._learn(ahead.key, self._answerer.ahead(ahead))
            else:
                self._answerer.evaluator.backend.ending.check()
                worker.wait(_LOOK)
            self._collect()
        return self._answers.pop(key, None)

    def share(self, call: Call) -> Answer | None:
        """The answer to a call that was not expected, its samples divided among those who are free.

        What was expected is forgotten: it was expected after something else. None where nobody is
        free, or a sample's loss does not stand for itself.

        Raises
        ------
        Stop
            If the run is to end.
        """
        self._waiting.clear()
        self._ready()
        self._collect()
        free = [w for w in self._workers if isinstance(w, Helper) and w.call is None and w.alive]
        parts = self._answerer.parted(call, len(free) + 1)
        if len(parts) == 1:
            return None
        started = time.perf_counter()
        helpers = dict(zip(free, parts[1:], strict=False))
        for helper, part in helpers.items():
            helper.help(part)
        pieces = []
        try:
            pieces.append(self._answerer.piece(parts[0]))
            for helper, part in list(helpers.items()):
                if self._needed(call, pieces[0], part):
                    pieces.append(helper.piece() or self._answerer.piece(part))
                    del helpers[helper]
        finally:
            for helper in helpers:
                helper.abandon()
        return self._answerer.whole(call, pieces, time.perf_counter() - started)

    @staticmethod
    def _needed(call: Call, mine: Piece, part: Part) -> bool:
        """Whether a part holds samples before the one that broke the limit here."""
        last = list(mine.seen)[-1]
        if mine.seen[last].loss <= call.limit:
            return True
        return call.searched.index(part.samples[0]) < call.searched.index(last)

    def _ready(self) -> None:
        if not self._hired:
            self._workers = list(self._hire(self._answerer))
            self._hired = True

    def _at(self, key: str) -> Worker | None:
        return next((w for w in self._workers if w.call is not None and w.call.key == key), None)

    def _collect(self) -> None:
        """Take what is done, and hand out more."""
        for worker in self._workers:
            if worker.call is not None and worker.done:
                key, answer = worker.call.key, worker.result()
                if answer is not None:
                    self._learn(key, answer)
        for worker in self._workers:
            if worker.call is None and self._waiting and worker.alive:
                worker.begin(self._waiting.pop(0))

    def _learn(self, key: str, answer: Answer) -> None:
        self._answers[key] = answer
        while len(self._answers) > _UNASKED:
            self._answers.pop(next(iter(self._answers)))

    def close(self) -> None:
        """End the workers, and forget what was evaluated ahead."""
        for worker in self._workers:
            worker.close()
        self._workers, self._waiting, self._hired = [], [], False
        self._answers.clear()
