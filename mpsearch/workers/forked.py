"""Workers on this machine, forked: weights and what was computed so far are shared, not copied."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from ..errors import InputError
from ..evaluation.evaluator import Evaluation, Evaluator
from ..forking import become_helper, received
from ..program.precision import Precision


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


#: The evaluations that were asked for; None where they were lost.
Result = Callable[[], list[Evaluation] | None]
#: Has another process evaluate some samples.
Begin = Callable[[list[int]], Result]


def divided(
    samples: Sequence[int],
    here: Callable[[list[int]], list[Evaluation]],
    others: Sequence[Begin],
) -> list[Evaluation]:
    """The evaluations of samples, in order, by this process and others.

    A sample goes to the same process each time. What another one loses is done ``here``.
    """
    parts: list[list[int]] = [[] for _ in range(len(others) + 1)]
    for sample in samples:
        parts[sample % len(parts)].append(sample)
    asked = [(part, begin(part)) for begin, part in zip(others, parts[1:], strict=True) if part]
    found = dict(zip(parts[0], here(parts[0]), strict=True))
    for part, result in asked:
        made = result()
        found |= dict(zip(part, here(part) if made is None else made, strict=True))
    return [found[sample] for sample in samples]


class Forks:
    """Forked processes (:class:`mpsearch.search.evaluations.Workers`).

    A sample is always run by the same process, which remembers results on the way.

    Parameters
    ----------
    jobs
        How many processes evaluate, this one included.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._forks: list[_Fork] = []
        self._of: tuple[Evaluator, int] | None = None  # what the forks know

    def evaluate(
        self, evaluator: Evaluator, precision: Precision, samples: Sequence[int], apart: bool
    ) -> list[Evaluation]:
        """The evaluations of a precision on several samples, in order.

        What a process that died was to do is done here.
        """
        self._renew(evaluator)

        def beginning(fork: _Fork) -> Begin:
            def begin(part: list[int]) -> Result:
                fork.ask(precision, part, apart)
                return fork.answer

            return begin

        here = partial(run, evaluator, precision, apart=apart)
        return divided(samples, here, [beginning(fork) for fork in self._forks])

    def _renew(self, evaluator: Evaluator) -> None:
        """Fork anew where the evaluator has samples that the forks do not know."""
        known = self._of is not None and self._of[0] is evaluator
        if not known or self._of != (evaluator, evaluator.samples):
            self.close()
            self._of = evaluator, evaluator.samples
            self._forks = [_Fork(evaluator) for _ in range(self._jobs - 1)]

    def close(self) -> None:
        """End the processes; the next call forks them again."""
        for fork in self._forks:
            fork.close()
        self._forks, self._of = [], None


class _Fork:
    def __init__(self, evaluator: Evaluator) -> None:
        context: Any = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, self._pipe, evaluator), daemon=True
        )
        self.process.start()
        theirs.close()
        self._end = weakref.finalize(self, _end, self.process, self._pipe)

    def ask(self, precision: Precision, samples: Sequence[int], apart: bool) -> None:
        with contextlib.suppress(OSError):  # it has died: it gives no answer
            self._pipe.send((precision, samples, apart))

    def answer(self) -> list[Evaluation] | None:
        """The evaluations; None where the process died or failed."""
        try:
            found: list[Evaluation] | None = received(self._pipe, self.process)
        except (EOFError, OSError):
            return None
        return found

    def close(self) -> None:
        self._end()


def _end(process: Any, pipe: Connection) -> None:
    process.kill()
    process.join()
    pipe.close()


def run(
    evaluator: Evaluator, precision: Precision, samples: Sequence[int], apart: bool
) -> list[Evaluation]:
    """Evaluate here."""
    if apart:
        return [evaluator.evaluate(precision, sample) for sample in samples]
    return list(evaluator.evaluate_together(precision, samples))


def _serve(pipe: Connection, parents: Connection, evaluator: Evaluator) -> None:
    """A worker's life: until the parent closes the pipe, or dies."""
    become_helper(parents)
    with contextlib.suppress(EOFError, OSError):
        while True:
            precision, samples, apart = pipe.recv()
            found: list[Evaluation] | None = None
            with contextlib.suppress(Exception):  # the parent meets it too, and says what it is
                found = run(evaluator, precision, samples, apart)
            pipe.send(found)
    os._exit(0)
