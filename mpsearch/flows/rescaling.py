"""Powers of two, and other spellings, instead of FP32: the same request of a changed program."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..program.precision import Precision
from ..scaling.exponents import UNSCALED, Plan
from ..scaling.patterns import Rewrite
from ..scaling.scaled import planned, spelled, with_changes
from .job import Job, measured, pose
from .progress import Progress
from .wording import spelled_otherwise

#: Seconds for choosing exponents, and where that is only for a hint.
_SECONDS, _HINT_SECONDS = 20.0, 5.0
#: A rewritten program is taken where all-FP32's loss is no more than before and this share of the
#: limit: what it computes is then the same.
_SAME = 0.1


def changed(job: Job, bar: Progress) -> Job | None:
    """The search for what the changed program still needs FP32 for; None without a change."""
    wanted, problem = job.request.conversion, job.problem
    if wanted.rescale == "off" and not wanted.rewrite:
        return None
    if problem.ending.over or _suffices(job):
        return None
    found = job
    if wanted.rewrite and (other := spelled(job.prepared, job.sizes)):
        found = _posed(job, bar, other, UNSCALED)
        if found.problem.floor() > problem.floor() + _SAME * abs(problem.limit):
            found = job
    if wanted.rescale != "off" and not _suffices(found):
        found = _rescaled(found, bar, wanted.rescale == "insert")
    return None if found is job else found


def _suffices(job: Job) -> bool:
    return job.fits and job.problem.admit_fp16()


def _rescaled(job: Job, bar: Progress, insert: bool) -> Job:
    """The same with scaled tensors; the job itself where none are to be."""
    bar.stage("choosing exponents")
    plan = planned(job.prepared, job.range, job.sizes, insert, _SECONDS)
    if not plan.scales:
        return job
    return _posed(job, bar, job.rewrites, plan)


def lighter(job: Job, kept: Collection[str], bar: Progress) -> Job | None:
    """The same with what it does not need to have scaled as it was; None where it needs all.

    ``kept`` are the names of the ops that stay FP32, for their digits: FP32 holds what they give,
    and where all that read it are among them it need not fit FP16.
    """
    before = job.before
    if before is None or job.problem.ending.over:
        return None
    bar.stage("dropping exponents")
    insert = job.request.conversion.rescale == "insert"
    plan = planned(before.prepared, before.range, before.sizes, insert, _SECONDS, kept)
    if not plan.scales or plan.changes >= job.plan.changes:
        return None
    return _posed(before, bar, before.rewrites, plan)


def _posed(job: Job, bar: Progress, spellings: Sequence[Rewrite], plan: Plan) -> Job:
    """The same question of a changed program."""
    ending = job.problem.ending
    job.problem.engine.release()
    prepared = with_changes(job.prepared, spellings, plan.scales)
    bar.stage("measuring the changed program")
    return pose(
        job.request,
        prepared,
        ending,
        job.name,
        job.started,
        job.problem.watch,
        plan,
        spellings,
        job.problem.hire,
        job.device,
        job if plan.scales else None,
    )


def hint(job: Job, kept: int) -> str:
    """What another spelling, or scaling, would give where they are off; empty where nothing.

    Of both, what keeps fewer ops in FP32; of equals the spelling, which inserts nothing.
    """
    request = job.request
    if request.conversion.rescale != "off" or job.fits:
        return ""
    best, words = kept, ""
    if not request.conversion.rewrite:
        spellings = spelled(job.prepared, job.sizes)
        if spellings and (needed := _needed(job, spellings, UNSCALED)) < best:
            best, words = needed, f"--rewrite keeps {needed or 'none'} of {kept} ops in FP32: "
            words += spelled_otherwise(len(spellings))
    if not best:
        return words
    plan = planned(job.prepared, job.range, job.sizes, True, _HINT_SECONDS)
    if plan.scales and not plan.left and (needed := _needed(job, job.rewrites, plan)) < best:
        mode = "insert" if plan.inserted else "fold"
        words = f"--rescale {mode} keeps {needed or 'none'} of {kept} ops in FP32: {plan.words}"
    return words


def _needed(job: Job, spellings: Sequence[Rewrite], plan: Plan) -> int:
    """How many ops of the changed program leave FP16's range; all where these do not do."""
    problem = job.problem
    prepared = with_changes(job.prepared, spellings, plan.scales)
    evaluator = prepared.pool(job.request.execution.device, 0, problem.ending, job.request.chance)
    _, range_ = measured(prepared, evaluator, problem.ending)
    precision = Precision.of(range_.refused, len(prepared.ops))
    met = evaluator.evaluate(precision).loss <= problem.limit
    return len(range_.refused) if met else len(prepared.ops)
