"""What a search has found, as the result that the caller gets."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from importlib.metadata import version

import torch

from ..ending import Stage, Stop
from ..evaluation.evaluator import Evaluator
from ..evaluation.incremental import Incremental
from ..evaluation.metrics import NAMES
from ..explain.parting import parting
from ..package import emission
from ..package.config import Config
from ..program.lowering import lower_candidates
from ..program.precision import Precision
from ..results import account
from ..results.plain import number
from ..results.result import Result
from ..search.bound import Bound, lower_bound
from ..search.cost import Casts
from ..search.problem import Problem
from ..search.record import Trial
from ..source.conversion import convert
from ..source.modules import TorchModel
from ..source.precast import fingerprint
from ..source.prepare import Prepared
from ..usercode import reason
from .progress import Progress


def describe(
    prepared: Prepared, problem: Problem, result: Result, precision: Precision, casts: int
) -> None:
    """What is known of a set without running anything."""
    counter = Casts(prepared.lowered)
    result.costs = account.costs(prepared, precision, counter, casts)
    result.islands = account.islands(prepared, precision, counter)
    result.front = account.front(problem, prepared.metric)
    result.kept = account.unmeasured(prepared, precision)
    result.ops = account.op_rows(prepared, None, precision, counter)


def extras(
    prepared: Prepared,
    problem: Problem,
    result: Result,
    best: Trial,
    precision: Precision,
    bar: Progress,
) -> None:
    """What only the report needs, in the order of its worth, as far as the time reaches."""

    def bound() -> None:
        if (
            result.status == "interrupted"
            or best.kept == problem.everything
            or problem.question.pinned
        ):
            return
        found = _lower_bound(problem, problem.limit, best, result.proven)
        result.lower_bound = None if found is None else found.price
        _count(result, problem)
        if found is not None and found.contradicted:
            result.notes.append(
                "No lower bound: some set met the budget and a larger one broke it, so keeping "
                "more ops in FP32 can hurt here."
            )

    def alone() -> None:
        result.kept = account.kept_ops(prepared, problem, precision)
        result.tolerated_overflows = [op.name for op in problem.overflows(best.kept)]
        if result.tolerated_overflows:
            result.notes.append(_overflow_note(result.tolerated_overflows))

    def sensitivity() -> None:
        counter = Casts(prepared.lowered)
        rows = account.op_rows(prepared, problem.guide.model, precision, counter)
        known = {} if "alone" in result.not_measured else {op.name: op for op in result.kept}
        result.ops = [account.as_measured(row, known.get(row.name), result.metric) for row in rows]

    def remedies() -> None:
        result.remedies = account.remedies(prepared, problem, result.kept)

    problem.ending.stage = Stage.EXTRAS
    stages = {
        "lower_bound": (bound, "bounding"),
        "alone": (alone, "measuring the kept ops alone"),
        "sensitivity": (sensitivity, "predicting the sensitivity of every op"),
        "remedies": (remedies, "looking for remedies"),
    }
    for name, (work, said) in stages.items():
        bar.stage(said)
        try:
            problem.ending.check()
            work()
        except Stop:
            result.not_measured.append(name)
    if result.not_measured:
        result.notes.append("The run ended before the report was complete; what it lacks is '-'.")


def seal(
    prepared: Prepared,
    problem: Problem,
    result: Result,
    storage: str | None,
    stored_names: list[str],
) -> None:
    """The sentence, and what is written besides the package."""
    problem.ending.stage = Stage.WRITE
    if math.isnan(result.error_fp16):
        result.not_measured.append("error_fp16")
    result.explanation = _explain(result)
    result.config = _make_config(prepared, result, problem.question.seed, storage, stored_names)
    result._selector_source = emission.selector_source(
        prepared.precast, result.fp32_ops, _facts(prepared, result)
    )


def unwritten(
    prepared: Prepared,
    problem: Problem,
    started: float,
    precision: Precision,
    error: Exception,
) -> Result:
    """The result where no package could be written: the choice, as the search measured it."""
    assert problem.best is not None
    result = new_result(prepared, problem, started, "unwritten")
    result.error = result.searched_error = prepared.metric.loss_of(problem.best.loss)
    casts = Casts(prepared.lowered).count(precision)
    describe(prepared, problem, result, precision, casts)
    result.casts = casts
    result.not_measured = ["alone", "sensitivity", "lower_bound", "remedies"]
    result.notes.append(
        f"The package could not be written ({reason(error)}); the choice is in op_selector.py and "
        "precision.json. Make room, then run mpsearch apply."
    )
    seal(prepared, problem, result, None, [])
    return result


def _lower_bound(problem: Problem, limit: float, best: Trial, proven: bool) -> Bound | None:
    """The bound for the user's own budget, with the trials that the search left over."""
    if problem.question.objective != "ops":
        return None
    if not best.kept:
        return Bound(0, False)
    if proven and problem.question.limit == limit:
        return Bound(len(problem.question.precision(best.kept)), False)
    problem.release()
    problem.tighten(limit)
    return lower_bound(problem)


def _overflow_note(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return (
        f"Left in FP16 although they overflow on the calibration data, within the budget: {shown}. "
        "Use --forbid-overflow to keep such ops FP32."
    )


def infeasible(
    prepared: Prepared, problem: Problem, started: float, held: float | None = None
) -> Result:
    """The result where even all-FP32 breaks the budget, with the reason."""
    result = new_result(prepared, problem, started, "infeasible")
    if held is not None:
        result.heldout_error = prepared.metric.loss_of(held)
    result.explanation = _why_infeasible(prepared, problem, held)
    return result


def new_result(prepared: Prepared, problem: Problem, started: float, status: str) -> Result:
    floor, fp16 = problem.ends()
    metric, evaluator = prepared.metric, problem.evaluator
    return Result(
        status=status,
        budget=metric.loss_of(problem.limit),
        metric=metric.name,
        error=metric.loss_of(floor),
        error_fp16=math.nan if fp16 is None else metric.loss_of(fp16),
        error_fp32=metric.loss_of(floor),
        candidate_ops=len(prepared.ops),
        evaluations=evaluator.evaluations,
        op_executions=evaluator.backend.executions,
        forward_equivalents=evaluator.backend.forward_equivalents,
        seconds=time.perf_counter() - started,
        minimised=problem.question.objective,
        notes=_notes(prepared),
        pinned_by_hazard=prepared.pinned_by_hazard,
        understood=prepared.understood,
        history=list(problem.record.trials),
        study=problem.record.study,
    )


def _count(result: Result, problem: Problem) -> None:
    """What the search has cost so far."""
    evaluator = problem.evaluator
    result.evaluations = evaluator.evaluations
    result.op_executions = evaluator.backend.executions
    result.forward_equivalents = evaluator.backend.forward_equivalents
    result.history = list(problem.record.trials)


def _explain(result: Result) -> str:
    kept, total = len(result.kept), result.candidate_ops
    if not kept and result.status == "fp16_suffices":
        return f"FP16 meets the budget as it is: none of {total} ops need FP32."
    found = f"{kept} of {total} ops stay FP32; the package, read back and run, meets the budget."
    if result.proven:
        found += " No cheaper set does: all were tried."
    if result.status == "unwritten":
        return f"{kept} of {total} ops stay FP32, as searched; there is no package: see the notes."
    return f"Interrupted: the best set so far. {found}" if result.status == "interrupted" else found


def _notes(prepared: Prepared) -> list[str]:
    notes = list(prepared.notes)
    if prepared.calibration.noise:
        notes.append("The data is random: a budget met on noise says little about real inputs.")
    if not prepared.heldout.samples:
        notes.append("No held-out data: the error on other inputs is not known.")
    if prepared.torch_model is not None and prepared.torch_model.half:
        notes.append(
            "The model has half-precision parts; an FP32 copy was searched and is the reference."
        )
    return notes


def _why_infeasible(prepared: Prepared, problem: Problem, held: float | None) -> str:
    show = prepared.metric.loss_of
    limit, floor = problem.limit, problem.ends()[0]
    where = f"With every op in FP32 the error is {show(floor):.3g}"
    if held is not None and floor <= limit:
        return (
            f"{where} on the calibration data, but {show(held):.3g} on the held-out data, beyond "
            f"the budget {show(limit):g}."
        )
    if floor <= limit:
        return "With the ops pinned to FP16, no choice for the others meets the budget; unpin some."
    where = f"{where}, beyond the budget {show(limit):g}"
    if prepared.io_dtype == "fp16" and prepared.torch_model is not None:
        plain = _floor_with_fp32_io(prepared, prepared.torch_model)
        if plain <= limit:
            return (
                f"{where}; with FP32 inputs and outputs it is {show(plain):.3g}: the FP16 inputs "
                "and outputs cost the accuracy. Use --io-dtype fp32."
            )
    place = parting(prepared, problem.engine, account.harmful(prepared, problem))
    parts = "" if place is None else f", which is at {place}"
    return (
        f"{where}: precision is not the cause. The converted program already differs from the "
        "PyTorch model, so no FP32 op will help. Raise the budget, or change the model where the "
        f"two part{parts}."
    )


def _floor_with_fp32_io(prepared: Prepared, model: TorchModel) -> float:
    """The loss of all-FP32 when inputs and outputs are FP32 too."""
    precast = convert(model, prepared.given, prepared.precast.target, "fp32")
    lowered, ops = lower_candidates(precast.program, layer_of=precast.layer_of)
    samples = []
    for given in prepared.given:
        tensors = (v for v in given.values() if isinstance(v, torch.Tensor))
        wide = (v.float() if v.is_floating_point() else v.int() for v in tensors)
        samples.append(dict(zip(lowered.inputs, wide, strict=False)))
    evaluator = Evaluator(
        Incremental(lowered, len(ops), samples, prepared.profiles),
        [dict(zip(lowered.outputs, r.values(), strict=True)) for r in prepared.references],
        prepared.metric,
        prepared.calibration.targets,
    )
    return evaluator.evaluate(Precision.all_fp32(len(ops))).loss


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("mpsearch", "coremltools", "torch", "numpy", "optuna")}


def _make_config(
    prepared: Prepared, result: Result, seed: int, storage: str | None, stored: list[str]
) -> Config:
    return Config(
        source=prepared.source,
        fingerprint=fingerprint(prepared.precast),
        versions=_versions(),
        target=prepared.precast.target,
        io_dtype=prepared.io_dtype,
        metric=result.metric,
        budget=result.budget,
        errors={
            "error": number(result.error),
            "error_fp16": number(result.error_fp16),
            "error_fp32": number(result.error_fp32),
            "heldout_error": number(result.heldout_error),
        },
        numerics=",".join(p.name for p in prepared.profiles),
        seed=seed,
        inputs=[
            {"name": p.name, "dtype": p.dtype, "shape": list(p.shape)} for p in prepared.inputs
        ],
        fp32_ops=result.kept,
        weights={"storage": storage, "names": stored} if stored else None,
        states=[] if prepared.torch_model is None else list(prepared.torch_model.states),
        custom_metric=result.metric not in NAMES,
    )


def _facts(prepared: Prepared, result: Result) -> dict[str, str]:
    versions = _versions()
    return {
        "model": f"{prepared.source}, {len(prepared.ops)} ops that can be cast",
        "kept in FP32": f"{len(result.kept)} ops",
        "metric": f"{result.metric}, budget {result.budget:g}",
        "error": f"{result.error:.3g} (all FP16: {result.error_fp16:.3g}, "
        f"all FP32: {result.error_fp32:.3g})",
        "numerics": ",".join(p.name for p in prepared.profiles),
        "target": prepared.precast.target,
        "made with": ", ".join(f"{k} {v}" for k, v in versions.items()),
    }
