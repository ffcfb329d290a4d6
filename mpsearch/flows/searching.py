"""Searching on a few samples, and on until what was found holds on all that were given."""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import suppress

from ..ending import Stage, Stop
from ..search.confirming import Confirmed, confirm, lost
from ..search.mending import mend
from ..search.problem import Problem
from ..search.pruning import prune
from ..search.question import Kept
from ..search.record import Trial
from ..search.registry import run
from ..search.settling import settle
from .job import Job, affordable, pool_size

#: How much below the budget to search once a second package has broken what its search met.
_MARGIN = 0.9
#: How often a set is mended at most.
_ROUNDS = 16
#: Of the ops still in FP16: how many more become FP32 at once where there is no trial to mend by.
_SHARES = (0.125, 0.25, 0.5)


def search(job: Job, start: Collection[str] = ()) -> bool:
    """Find the smallest set for the samples given; False where the run was cut short.

    ``start`` are the names of ops of a set that is to do; it is mended where it does not.
    """
    problem = job.problem
    if start:
        units = enumerate(problem.question.units)
        kept = frozenset(
            i for i, u in units if any(problem.question.ops[j].name in start for j in u.ops)
        )
        finished = problem.admit(kept | problem.question.forced).met or _mended(problem, kept)
    else:
        finished = problem.admit_fp16() or run(job.request.search, problem)
    return _confirmed(job, bool(start)) and finished


def mended(job: Job, trial: Trial) -> bool:
    """Search on from a set that no longer meets the limit; False where the run was cut short."""
    return _mended(job.problem, trial.kept) and _confirmed(job, True)


def again(job: Job, trial: Trial, loss: float) -> bool:
    """Search on where the package of a set has another loss than the set; False if cut short.

    The first time below the budget by as much as the package was above it, then by more.
    """
    problem = job.problem
    margin = 1.0 if problem.question.limit == problem.limit else _MARGIN
    problem.reject(trial.kept)
    problem.tighten(_tighter(problem, min(problem.question.limit, trial.loss), loss, margin))
    return mended(job, trial)


def _confirmed(job: Job, mended: bool) -> bool:
    """Mend the best set until it holds on the samples that were not searched on as well.

    Sample by sample a ``mended`` set grows by what each of them needs; of that much is needed no
    more at the end. Where samples are so many that by rank they tell how often the next one breaks
    the budget, it is pruned with all of them as the judge. Fewer that chose are no judge: it is
    pruned by those that it was mended for, and what comes of that must hold on the others as well.
    """
    problem = job.problem
    limit = problem.question.limit  # the one asked for, unless a package broke that
    failed: Kept | None = None
    held: Kept | None = None
    spared: frozenset[int] = frozenset()
    for _ in range(_ROUNDS):
        best = problem.best
        if failed is not None and (best is None or best.kept == problem.everything):
            best = _larger(problem, failed)  # no trial was left to mend it by
        if best is None or best.kept in (problem.everything, held):
            return True
        problem.ending.stage = Stage.SEARCH
        try:
            found = confirm(problem, best)
        except Stop:
            break
        if not found.offenders and found.expected <= problem.limit:
            held, spared = best.kept, found.spared
            if problem.evaluator.tolerated and _cheap(job):
                settle(problem, held, limit, spared)
                return not problem.ending.over
            if not mended or _pruned(problem, held):
                return True
            continue
        problem.reject(best.kept)
        failed, mended = best.kept, True
        if found.offenders:
            more = _draw(job, found)
            # Not by those that the set that holds may break: it is to stay one that does.
            problem.widen([s for s in found.offenders if s not in spared] or found.offenders)
            if held is not None:
                problem.admit(held)  # by what is searched on now; what is new it may yet break
                held = None if more else held
        elif held is None:
            problem.tighten(_tighter(problem, best.loss, found.expected))
        else:
            break
        if not _mended(problem, best.kept):
            break
    if held is not None:
        problem.fall_back(held)
    return not problem.ending.over


def _cheap(job: Job) -> bool:
    """Whether many sets may be judged by all samples; on a device each is a package of its own."""
    return job.device is None and affordable(job.problem.engine.samples, job.prepared.flops)


def _pruned(problem: Problem, kept: Kept) -> bool:
    """Cast what a set does not need; True where it needs everything."""
    problem.extend(max(problem.remaining, len(kept)))
    with suppress(Stop):
        prune(problem, kept, "prune", again=True)
    return problem.best is None or problem.best.kept == kept


def _draw(job: Job, found: Confirmed) -> bool:
    """Redraw more samples where one was lost altogether, once; whether there are more now."""
    problem, prepared = job.problem, job.prepared
    if problem.ending.limited or not lost(found.expected, problem.limit):
        return False
    further = prepared.further(
        max(pool_size(prepared.flops, lost=True) - problem.engine.samples, 0)
    )
    for sample, reference in further:
        problem.evaluator.add(sample, reference)
    return bool(further)


def _larger(problem: Problem, kept: Kept) -> Trial | None:
    """A much larger set that meets the limit, whatever the trials allow; None where none does."""
    rest = [unit for unit in problem.keep_order() if unit not in kept]
    for share in _SHARES:
        try:
            trial = problem.admit(kept.union(rest[: math.ceil(share * len(rest))]))
        except Stop:
            return None
        if trial.met:
            return trial
    return None


def _mended(problem: Problem, kept: Kept) -> bool:
    problem.ending.stage = Stage.SEARCH
    try:
        mend(problem, kept.union(problem.question.forced))
    except Stop:
        return not problem.ending.over
    return True


def _tighter(problem: Problem, least: float, loss: float, margin: float = 1.0) -> float:
    """A limit that leaves room for what ``loss`` is beyond the budget, and some.

    Losses in dB are negative, so the room is a difference there and a factor elsewhere.
    """
    limit, floor = problem.limit, problem.ends()[0]
    if limit > 0:
        found = least * margin * (limit / loss if math.isfinite(loss) else 1.0)
    else:
        found = least - (loss - limit if math.isfinite(loss) else 0.0) - (1 - margin) * abs(limit)
    return max(found, floor)
