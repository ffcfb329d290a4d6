"""Powers of two instead of FP32: the same request, asked of a scaled program."""

from __future__ import annotations

from ..program.precision import Precision
from ..scaling.scaled import planned, with_scales
from .job import Job, measured, pose
from .progress import Progress

#: Seconds for choosing exponents, and where that is only for a hint.
_SECONDS, _HINT_SECONDS = 20.0, 5.0


def rescaled(job: Job, bar: Progress) -> Job | None:
    """The search for what still needs FP32 once tensors are scaled; None where none are to be."""
    request, problem = job.request, job.problem
    mode = request.conversion.rescale
    if mode == "off" or problem.ending.over or (job.fits and problem.admit_fp16()):
        return None
    bar.stage("choosing exponents")
    plan = planned(job.prepared, problem.engine, job.range, mode == "insert", _SECONDS)
    if not plan.scales:
        return None
    problem.engine.release()
    prepared = with_scales(job.prepared, plan.scales)
    bar.stage("measuring the scaled program")
    return pose(request, prepared, problem.ending, job.name, job.started, bar.trial, plan)


def hint(job: Job, kept: int) -> str:
    """What scaling would give where it is off; empty where that is not better."""
    request, problem = job.request, job.problem
    if request.conversion.rescale != "off" or job.fits:
        return ""
    plan = planned(job.prepared, problem.engine, job.range, True, _HINT_SECONDS)
    if not plan.scales or plan.left:
        return ""
    prepared, execution = with_scales(job.prepared, plan.scales), request.execution
    evaluator = prepared.pool(execution.device, 0, problem.ending, request.chance)
    _, range_ = measured(prepared, evaluator, problem.ending)
    needed = len(range_.refused)
    precision = Precision.of(range_.refused, len(prepared.ops))
    if needed >= kept or evaluator.evaluate(precision).loss > problem.limit:
        return ""
    mode = "insert" if plan.inserted else "fold"
    return f"--rescale {mode} keeps {needed or 'none'} of {kept} ops in FP32: {plan.words}"
