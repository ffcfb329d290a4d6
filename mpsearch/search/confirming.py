"""How a set does on the samples that it was not found on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..evaluation.evaluator import Measured
from ..forking import each
from ..program.precision import Precision
from .answer import Answer, call
from .problem import Problem
from .record import Trial

#: A set is given up for mending once so many samples break its limit, or more than it may.
_OFFENDERS = 2
#: A sample is lost altogether whose loss is beyond so many times the budget, or decibels above it.
_LOST, _LOST_DB = 10.0, 20.0

_Enough = Callable[[Sequence[float]], bool]


@dataclass(frozen=True, slots=True)
class Confirmed:
    """How a set does on the samples that are not searched on.

    Attributes
    ----------
    offenders
        Those on which it breaks the limit though it may not, the worst first; not all of them,
        where there are many.
    expected
        What the next input's loss is expected to stay below, by all samples; the worst loss where
        there are offenders.
    spared
        Redrawn samples on which it breaks the limit, and may.
    """

    offenders: list[int]
    expected: float
    spared: frozenset[int] = frozenset()


def lost(loss: float, limit: float) -> bool:
    """Whether a loss is no matter of rounding: the sample is lost altogether.

    Losses in dB are negative.
    """
    return loss > (limit * _LOST if limit > 0 else limit + _LOST_DB)


def confirm(problem: Problem, trial: Trial) -> Confirmed:
    """How a set does on the samples that are not searched on, against the limit asked for at first.

    Those are looked at first that were nearest to breaking it before. Of redrawn ones a few may
    break it where there are hundreds, no more than the next input may
    (:func:`mpsearch.evaluation.coverage.tolerated`); of those given none.

    Raises
    ------
    Stop
        If the run is to end.
    """
    evaluator, limit, last = problem.evaluator, problem.limit, problem.last_losses
    rest = sorted(evaluator.rest, key=lambda s: -last.get(s, -math.inf))
    most = max(_OFFENDERS, evaluator.tolerated + 1)

    def enough(losses: Sequence[float]) -> bool:
        return sum(loss > limit for loss in losses) >= most or losses[-1] == math.inf

    precision = problem.question.precision(trial.kept)
    found = _recorded(problem, precision, rest, "confirm", enough) if rest else {}
    last |= found
    broken = {s: loss for s, loss in found.items() if loss > limit}
    if not rest or not evaluator.may_break(broken):
        worst = max(found.values(), default=trial.loss)
        return Confirmed(sorted(broken, key=lambda s: (-broken[s], s)), worst)
    found |= _recorded(problem, precision, evaluator.searched, "expect")
    losses = [loss for sample, loss in found.items() if sample not in broken]
    return Confirmed([], evaluator.predicted(losses), frozenset(broken))


def _recorded(
    problem: Problem,
    precision: Precision,
    samples: Sequence[int],
    by: str,
    enough: _Enough | None = None,
) -> dict[int, float]:
    """The losses of single samples: those of a run before, or evaluated now."""
    wanted, engine = call(by, precision, samples, problem.limit), problem.engine
    known = problem.record.recall(wanted)
    if known is None or not {*known.losses} <= {*samples}:
        started, executed = time.perf_counter(), engine.executions
        found = _losses(problem, precision, samples, enough)
        worst, every = max(found.values()), len(found) == len(samples)
        seconds, ran = time.perf_counter() - started, engine.executions - executed
        known = Answer(Measured(worst, worst, every, ran, seconds), losses=found)
    else:
        engine.executions += known.measured.executions
    problem.note(precision, known.measured, by, (wanted, known))
    return dict(known.losses)


def _losses(
    problem: Problem, precision: Precision, samples: Sequence[int], enough: _Enough | None
) -> dict[int, float]:
    """The losses of single samples, in as many processes as there are."""
    losses, jobs = problem.evaluator.losses, problem.jobs
    if jobs == 1:
        return losses(precision, samples, enough)
    parts = [samples[k::jobs] for k in range(jobs)]
    made = each(lambda part: losses(precision, part), [p for p in parts if p], jobs)
    every = {sample: loss for part in made for sample, loss in part.items()}
    found: dict[int, float] = {}
    for sample in samples:  # until there are enough, as one process does
        found[sample] = every[sample]
        if enough is not None and enough(list(found.values())):
            break
    return found
