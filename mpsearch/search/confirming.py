"""How a set does on all samples, those that it was not found on among them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..evaluation.evaluator import Measured
from ..forking import each
from ..program.precision import Precision
from .answer import Answer, call
from .problem import Problem
from .question import Kept
from .record import Trial

#: A set is given up for mending once so many samples break its limit, or more than it may.
_OFFENDERS = 2
#: A sample is lost altogether whose loss is beyond so many times the budget, or decibels above it.
_LOST, _LOST_DB = 10.0, 20.0

#: So many samples are looked at before other processes are asked: enough to refuse most sets.
_FIRST = 16

_Enough = Callable[[dict[int, float]], bool]


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
    evaluator, limit = problem.evaluator, problem.limit
    rest = _likeliest(problem, evaluator.rest)
    most = max(_OFFENDERS, evaluator.tolerated + 1)
    precision = problem.question.precision(trial.kept)

    def enough(losses: dict[int, float]) -> bool:
        newest = next(reversed(losses.values()))
        return newest > limit and (len(_beyond(losses, limit)) >= most or newest == math.inf)

    def losses_of(samples: Sequence[int], by: str, enough: _Enough | None) -> dict[int, float]:
        wanted, answer = _answer(problem, precision, samples, by, limit, enough)
        problem.note(precision, answer.measured, by, (wanted, answer))
        problem.last_losses |= answer.losses
        return dict(answer.losses)

    found = losses_of(rest, "confirm", enough) if rest else {}
    broken = _beyond(found, limit)
    if not rest or not evaluator.may_break(broken):
        worst = max(found.values(), default=trial.loss)
        return Confirmed(sorted(broken, key=lambda s: (-broken[s], s)), worst)
    found |= losses_of(evaluator.searched, "expect", None)
    losses = [loss for sample, loss in found.items() if sample not in broken]
    return Confirmed([], evaluator.predicted(losses), frozenset(broken))


def judge(problem: Problem, kept: Kept, limit: float, by: str) -> tuple[Trial, frozenset[int]]:
    """What comes of a set by all samples; and the redrawn ones on which it breaks ``limit``.

    Those are looked at first that were nearest to breaking it before, and no more than it takes to
    tell. What overflows is looked for on those that are searched on. A trial of the pass ``by`` as
    any other.

    Raises
    ------
    Stop
        If trials or time are used up.
    """
    problem.allow()
    evaluator = problem.evaluator
    order = _likeliest(problem, range(problem.engine.samples))
    precision = problem.question.precision(kept)

    def allowed(losses: Mapping[int, float]) -> bool:
        return evaluator.may_break(_beyond(losses, limit))

    def enough(losses: dict[int, float]) -> bool:
        return next(reversed(losses.values())) > limit and not allowed(losses)

    def overflow(losses: Mapping[int, float]) -> str:
        return _overflow(problem, precision) if allowed(losses) else ""

    wanted, answer = _answer(problem, precision, order, by, limit, enough, overflow)
    problem.last_losses |= answer.losses
    broken = _beyond(answer.losses, limit)
    measured = answer.measured
    if evaluator.may_break(broken):
        losses = [n for sample, n in answer.losses.items() if sample not in broken]
        measured = replace(measured, loss=evaluator.predicted(losses), exact=True)
    trial = problem.judged(kept, by, measured, None, answer.overflows, (wanted, answer))
    return trial, frozenset(broken)


def _overflow(problem: Problem, precision: Precision) -> str:
    """An op whose overflow does harm on a sample that is searched on; empty if none."""
    engine = problem.engine
    for sample in problem.evaluator.searched:
        for profile in range(engine.profiles):
            engine.outputs(precision, sample, profile)
            for node in problem.answerer.harmful(engine.lost):
                return node.name
    return ""


def _likeliest(problem: Problem, samples: Iterable[int]) -> list[int]:
    """Samples, those first that were nearest to breaking the limit before."""
    last = problem.last_losses
    return sorted(samples, key=lambda s: -last.get(s, -math.inf))


def _beyond(losses: Mapping[int, float], limit: float) -> dict[int, float]:
    return {sample: loss for sample, loss in losses.items() if loss > limit}


def _answer(
    problem: Problem,
    precision: Precision,
    samples: Sequence[int],
    by: str,
    limit: float,
    enough: _Enough | None = None,
    overflow: Callable[[Mapping[int, float]], str] = lambda losses: "",
) -> tuple[str, Answer]:
    """The losses of single samples: those of a run before, or evaluated now.

    ``overflow`` is then asked for an op that overflows.
    """
    wanted, engine = call(by, precision, samples, limit), problem.engine
    known = problem.record.recall(wanted)
    if known is None or not {*known.losses} <= {*samples}:
        started, executed = time.perf_counter(), engine.executions
        found = _losses(problem, precision, samples, enough)
        overflows = overflow(found)
        worst, every = max(found.values()), len(found) == len(samples)
        seconds, ran = time.perf_counter() - started, engine.executions - executed
        measured = Measured(worst, worst, every, ran, seconds)
        known = Answer(measured, overflows=overflows, losses=found)
    else:
        engine.executions += known.measured.executions
    return wanted, known


def _losses(
    problem: Problem, precision: Precision, samples: Sequence[int], enough: _Enough | None
) -> dict[int, float]:
    """The losses of single samples, in as many processes as there are."""
    losses, jobs = problem.evaluator.losses, problem.jobs
    few = samples if jobs == 1 else samples[:_FIRST]
    found = losses(precision, few, enough)
    if len(found) < len(few) or len(few) == len(samples) or _sufficient(enough, found):
        return found
    rest = samples[_FIRST:]
    parts = [part for k in range(jobs) if (part := rest[k::jobs])]
    made = each(lambda part: losses(precision, part), parts, jobs)
    every = {sample: loss for part in made for sample, loss in part.items()}
    for sample in rest:  # until there are enough, as one process does
        found[sample] = every[sample]
        if _sufficient(enough, found):
            break
    return found


def _sufficient(enough: _Enough | None, found: dict[int, float]) -> bool:
    return enough is not None and enough(found)
