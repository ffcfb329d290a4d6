"""Searches, writes the package, validates it; and on until it holds."""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from ..ending import Stage, Stop
from ..errors import MpsearchError
from ..result import PACKAGE, Result
from ..search.conflicts import repair
from ..search.joining import confirm, confirmed, search_on
from ..search.proof import prove
from ..search.refining import prune
from ..search.registry import run
from ..search.samples import Kind
from ..search.search import Trial
from ..source.prepare import Prepared
from ..temporary import TemporaryFolder
from .job import Job
from .outcome import Found, infeasible, outcome, unwritten
from .progress import Progress
from .validating import Validator
from .writing import Written, check_integers, store, write

#: How much below the budget to search once a second package has broken what its search met.
_MARGIN = 0.9


def search_until_valid(job: Job, bar: Progress, start: Collection[str] = ()) -> Result:
    """Search, write the best set, read it back, validate it; and on until it holds.

    Passes that coremltools runs after the cast may reorder arithmetic, so that the package breaks
    the budget that the search met; and the search has not seen the held-out data. Where the run is
    to end there is no searching on: a safer set is taken.

    Parameters
    ----------
    start
        Names of the FP32 ops of a set to begin with, in place of a search.
    """
    search, ending = job.search, job.context.ending
    validator, directory = Validator(job), TemporaryFolder()
    notes, dtype = list(job.notes), job.request.conversion.weight_dtype
    search.judge_all_units()
    finished = _searched(job, start)
    proven = finished and job.request.limits.prove and prove(search)
    integers_fit = False  # whether that was looked at
    taken: Trial | None = None
    while True:
        ending.stage = Stage.WRITE
        best = taken or confirmed(search)
        taken, last = None, best.fp32 == search.problem.all_units
        bar.stage("writing the package and reading it back")
        precision = search.problem.precision(best.fp32)
        try:
            written = _written(job, best, directory.path / PACKAGE, dtype)
        except MpsearchError:
            raise
        except Exception as error:  # a full disk, in whatever words: what was found is reported
            return unwritten(job, best, error)
        if written.loss > search.problem.limit:
            if not integers_fit:
                place = directory.path / "without.mlpackage"
                prepared, samples = _seen(job, best)
                check_integers(prepared, precision, place, samples, search.problem.limit)
                integers_fit = True
            if last:
                return infeasible(job, package=written.loss)
            finished &= _tightened(job, best, written.loss)
            proven = False
            continue
        bar.stage("validating on held-out data")
        found = validator.validate(written.package, best.fp32)
        search.store()
        if found.holds:
            break
        if last and written.stored is not None:  # those weights may be what breaks the budget
            notes.append(f"Weights are stored as typed: as {dtype} they break held-out samples.")
            dtype = None
            continue
        if last:
            return infeasible(job, found.worst)
        proven = False
        if found.failed:
            notes += validator.promote(found.failed)
            finished &= _searched_on(job)
        elif found.safer is None:
            taken = search.judge_all_units()
        else:
            taken = search.taken(found.safer)
    if dtype is not None and written.stored is None:
        notes.append(f"Weights are stored as typed: no time was left for {dtype}.")
    finished &= not ending.over
    chosen = Found(best, precision, written, directory, finished, proven, tuple(notes), found)
    return outcome(job, chosen, bar)


def _searched(job: Job, start: Collection[str]) -> bool:
    """Run the strategy, or begin with a set; False where the run was cut short."""
    search = job.search
    search.ending.stage = Stage.SEARCH
    try:
        if start:
            ops = search.problem.ops
            units = enumerate(search.problem.units)
            fp32 = frozenset(i for i, u in units if any(ops[j].name in start for j in u.ops))
            prune(search, repair(search, fp32))
            return not search.ending.over
        if search.judge((), "ends").met:
            return True
        few = getattr(job.request.strategy_function, "few_samples", False)
        if few and not (search.ending.limited or job.request.limits.prove):
            search.set_aside()
    except Stop:
        return not search.ending.over
    finished = run(job.request.strategy_function, search)
    with suppress(Stop):
        confirm(search)
    return finished and not search.ending.over


def _searched_on(job: Job) -> bool:
    """Find a set that holds after more was asked for; False where the run was cut short."""
    search = job.search
    search.ending.stage = Stage.SEARCH
    with suppress(Stop):
        search_on(search)
        confirm(search)
    return not search.ending.over


def _tightened(job: Job, best: Trial, loss: float) -> bool:
    """Search on where the package of a set has another loss than the set.

    The first time below the budget by as much as the package was above it, then by more. Losses in
    dB are negative, so that the room is a difference there and a factor elsewhere.
    """
    search = job.search
    budget, margin = search.problem.limit, 1.0 if search.limit == search.problem.limit else _MARGIN
    least = min(search.limit, best.loss)
    if budget > 0:
        limit = least * margin * (budget / loss if math.isfinite(loss) else 1.0)
    else:
        limit = least - (loss - budget if math.isfinite(loss) else 0.0) - (1 - margin) * abs(budget)
    search.restrict(limit=max(limit, job.fp32_loss), refused=best.fp32)
    return _searched_on(job)


def _seen(job: Job, best: Trial) -> tuple[Prepared, list[int]]:
    """What was prepared, with held-out samples that joined the search as calibration samples.

    And these by index, those of the largest losses first.
    """
    joined = [s for s in job.search.samples if s.kind is Kind.HELDOUT]
    prepared = job.prepared.joined([sample.number for sample in joined])
    known = job.search.evaluations.known(job.search.problem.precision(best.fp32))
    losses = {s: found.loss for s, found in known.items()}
    given = [s for s in job.search.samples if s.kind is Kind.CALIBRATION] + joined
    order = [-losses.get(sample, -math.inf) for sample in given]
    return prepared, sorted(range(len(given)), key=order.__getitem__)


def _written(job: Job, best: Trial, path: Path, dtype: str | None) -> Written:
    """The package, with weights stored as ``dtype`` where time is left for that."""
    search = job.search
    evaluations = search.evaluations
    if evaluations.workers is not None:
        evaluations.workers.close()
    evaluations.evaluator.engine.release()  # coremltools and the package hold the weights as well
    (prepared, samples), limit = _seen(job, best), search.problem.limit
    precision = search.problem.precision(best.fp32)
    written = write(prepared, precision, path, samples, device=job.context.device)
    if dtype is None or search.ending.over or written.loss > limit:
        return written
    device = job.context.device
    return store(prepared, precision, path, written, samples, dtype, limit, device)
