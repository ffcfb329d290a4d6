"""Powers of two, and rewritten ops, instead of FP32: the same request of a changed program."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from ..ending import Stop
from ..hints import option
from ..program.precision import Precision
from ..results.plain import share, size
from ..scaling.exponents import UNSCALED, Magnitudes, Plan
from ..scaling.magnitudes import magnitudes
from ..scaling.patterns import Rewrite
from ..scaling.scaled import planned, rewritten, with_changes
from ..search.cost import Casts, Cost, cost
from ..search.risk import Range
from ..source.prepare import Prepared
from .job import Job, build_job, measured
from .messages import ops_rewritten
from .progress import Progress

#: Seconds for choosing exponents, and where that is only for a hint.
_SECONDS, _HINT_SECONDS = 20.0, 5.0
#: A rewritten program is taken where all-FP32's loss is no more than before and this share of the
#: limit: what it computes is then the same.
_SAME = 0.1


def changed(job: Job, bar: Progress) -> Job | None:
    """The search for what the changed program still needs FP32 for; None without a change."""
    wanted, ending = job.request.conversion, job.context.ending
    if wanted.rescale == "off" and not wanted.rewrite:
        return None
    if ending.over or _suffices(job):
        return None
    found = job
    if wanted.rewrite and (other := rewritten(job.prepared, job.sizes)):
        found = _changed(job, bar, other, UNSCALED)
        if found.fp32_loss > job.fp32_loss + _SAME * abs(job.search.limit):
            found = job
    if wanted.rescale != "off" and not _suffices(found):
        found = _rescaled(found, bar, wanted.rescale == "insert")
    return None if found is job else found


def _suffices(job: Job) -> bool:
    try:
        return job.fits and job.search.judge((), "ends").met
    except Stop:
        return False


def _rescaled(job: Job, bar: Progress, insert: bool) -> Job:
    """The same with scaled tensors; the job itself where none are to be."""
    bar.stage("choosing exponents")
    plan = planned(job.prepared, job.range, job.sizes, insert, _SECONDS)
    if not plan.scales:
        return job
    return _changed(job, bar, job.rewrites, plan)


def with_fewer_scales(job: Job, fp32: Collection[str], bar: Progress) -> Job | None:
    """The same with what it does not need to have scaled as it was; None where it needs all.

    ``fp32`` are the names of the ops that stay FP32, for their digits: FP32 holds what they give,
    and where all that read it are among them it need not fit FP16.
    """
    before = job.before
    if before is None or job.context.ending.over:
        return None
    bar.stage("dropping exponents")
    insert = job.request.conversion.rescale == "insert"
    plan = planned(before.prepared, before.range, before.sizes, insert, _SECONDS, fp32)
    if not plan.scales or plan.changes >= job.plan.changes:
        return None
    return _changed(before, bar, before.rewrites, plan)


def _changed(job: Job, bar: Progress, rewrites: Sequence[Rewrite], plan: Plan) -> Job:
    """The same search of a changed program."""
    job.search.evaluations.evaluator.engine.release()
    prepared = with_changes(job.prepared, rewrites, plan.scales)
    bar.stage("measuring the changed program")
    return build_job(job.context, prepared, plan, rewrites, job if plan.scales else None)


def hint(job: Job, kept: Collection[str]) -> str:
    """What rewritten ops, scaling, or both give where they are off; empty where nothing.

    What is minimized decides; of equals what changes least: the rewrite, then what inserts
    nothing. The changed program was run with so many ops in FP32, on all samples but the held-out
    ones.
    """
    objective, ops = job.search.problem.objective, job.prepared.ops
    if job.request.conversion.rescale != "off" or job.fits:
        return ""
    chosen = Precision.of({op.index for op in ops if op.name in kept}, len(ops))
    now = best = cost(ops, job.casts, chosen)
    words = ""

    def dear(cost: Cost) -> tuple[float, int]:
        return cost.price(objective), cost.fp32_ops

    for change, said, rewrites, plan in _changes(job):
        needed = _needed(job, rewrites, plan, kept)
        if needed is not None and dear(needed) < dear(best):
            best, words = needed, _tried(change, needed, now, objective, said)
        if not best.fp32_ops:
            break
    return words


def _changes(job: Job) -> Iterator[tuple[str, str, Sequence[Rewrite], Plan]]:
    """What may be changed, what changes least first: an option, its effect, rewrites, scales."""
    rewrites = () if job.request.conversion.rewrite else rewritten(job.prepared, job.sizes)
    if rewrites:
        yield option("rewrite"), ops_rewritten(len(rewrites)), rewrites, UNSCALED
    for first in ((), rewrites) if rewrites else ((),):
        prepared, range_, sizes = _program(job, first)
        for mode in ("fold", "insert"):
            plan = planned(prepared, range_, sizes, mode == "insert", _HINT_SECONDS)
            change, said = option("rescale", mode), plan.words
            if first:
                change = f"{option('rewrite')} with {change}"
                said = f"{ops_rewritten(len(first))}; {said}"
            if plan.scales:
                yield change, said, (*job.rewrites, *first), plan


def _program(
    job: Job, rewrites: Sequence[Rewrite]
) -> tuple[Prepared, Range, Callable[[], dict[int, Magnitudes]]]:
    """What exponents are chosen from: the program once some ops are rewritten, and its ranges."""
    if not rewrites:
        return job.prepared, job.range, job.sizes
    prepared = with_changes(job.prepared, rewrites, ())
    evaluator = prepared.evaluator(job.request.execution.device, 0, job.context.ending)
    _, range_ = measured(prepared, evaluator, job.context.ending)
    samples = range(len(prepared.calibration.samples))

    def sizes() -> dict[int, Magnitudes]:
        return magnitudes(evaluator.engine, range_, samples)

    return prepared, range_, sizes


def _tried(change: str, needed: Cost, now: Cost, objective: str, changes: str) -> str:
    ops = "1 op in FP32 is" if needed.fp32_ops == 1 else f"{needed.fp32_ops} ops in FP32 are"
    said = f"{ops} enough then" if needed.fp32_ops else "no op needs FP32 then"
    said = f"{change}: {said}, in place of {now.fp32_ops}"
    if objective != "ops" and needed.fp32_ops:
        what, then, before = {
            "casts": ("casts", str(needed.casts), str(now.casts)),
            "bytes": ("weights", size(needed.weight_bytes), size(now.weight_bytes)),
            "flops": ("arithmetic in FP32", share(needed.fp32_flops), share(now.fp32_flops)),
        }[objective]
        said += f"; {what}: {then} in place of {before}"
    return f"{said} ({changes})"


def _needed(
    job: Job, rewrites: Sequence[Rewrite], plan: Plan, kept: Collection[str]
) -> Cost | None:
    """What those FP32 ops cost that were seen to be enough in the changed program.

    Those pinned or beyond FP16's range, or these and what was kept for its digits; None where
    neither is.
    """
    prepared = with_changes(job.prepared, rewrites, plan.scales)
    device, ending = job.request.execution.device, job.context.ending
    evaluator = prepared.evaluator(device, 0, ending, perturbed=True)
    _, range_ = measured(prepared, evaluator, ending)
    problem = job.search.problem
    pinned = {problem.ops[i].name for i in problem.always - problem.required}
    ranged = {problem.ops[i].name for i in problem.required}
    least = range_.refused | {op.index for op in prepared.ops if op.name in pinned}
    digits = {op.index for op in prepared.ops if op.name in kept and op.name not in ranged}
    for fp32 in (least, least | digits):
        precision = Precision.of(fp32, len(prepared.ops))
        if evaluator.loss(precision) <= job.search.problem.limit:
            return cost(prepared.ops, Casts(prepared.lowered), precision)
    return None
