"""What becomes of a search: the set is written, read back, and reported."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from . import account, emission, frontend, search, verification, weights
from .analysis import parting
from .config import Config
from .cost import Casts
from .errors import VerificationError
from .evaluator import Evaluator
from .frontend import TorchModel
from .prepare import Prepared
from .problem import Problem, Strategy, Trial
from .program import lower_candidates
from .progress import Progress
from .result import PACKAGE, Result, number

#: How much below the budget to search once a set has failed where the search could not see it.
_MARGIN = 0.9
#: Bytes of results to remember where sets are tried on the held-out data.
_HELDOUT_CACHE = 256 << 20


def finish(
    prepared: Prepared,
    problem: Problem,
    strategy: Strategy,
    started: float,
    bar: Progress,
    interrupted: bool,
    storage: str | None = None,
) -> Result:
    """Write the best set, read it back, and search on with more margin until it holds.

    ``storage`` is how weights are to be stored then, where that keeps the budget.

    Passes that coremltools runs after the cast may reorder arithmetic, and the held-out data is
    not known to the search: either can break the budget that the search met.

    Raises
    ------
    VerificationError
        If the package computes an op in another precision than was asked for.
    """
    limit = problem.user_budget
    scratch = tempfile.TemporaryDirectory(prefix="mpsearch-")
    path = Path(scratch.name) / PACKAGE
    fallback: Trial | None = None
    while True:
        best = problem.best
        assert best is not None  # all-FP32 meets the budget, or there would be no search
        if fallback is not None and problem.rank(fallback.kept) < problem.rank(best.kept):
            best = fallback
        bits = problem.vector(best.kept)
        names = [op.name for op in prepared.ops if bits[op.index]]
        bar.stage("writing the package and reading it back")
        problem.evaluator.release()  # coremltools and the package hold the weights once more each
        package, measured, held = _emit(prepared, names, path)
        worst = max(measured, held)
        if worst <= limit or best.kept == problem.everything:
            break
        del package
        problem.reject(best.kept)
        fallback = _holding(prepared, problem, limit)
        problem.tighten(max(problem.ends()[0], _tighter(problem.budget, best.loss, limit, worst)))
        if not interrupted:
            interrupted = not search.run(strategy, problem)
    if worst > limit:
        return infeasible(prepared, problem, started, held)
    status = "interrupted" if interrupted else "met" if names else "fp16_suffices"
    stored: weights.Stored | None = None
    stored_names: list[str] = []
    if storage is not None:
        bar.stage(f"storing weights as {storage}")
        package, measured, held, stored, stored_names = _store(
            prepared, names, path, (package, measured, held), storage, limit
        )
    casts = package.casts
    del package  # it holds the weights once more
    bound = None
    if not interrupted and best.kept != problem.everything and not problem.pinned:
        bar.stage("bounding")
        bound = _lower_bound(problem, limit, best)
    result = _result(prepared, problem, started, status)
    bar.stage("measuring the kept ops alone")
    kept = account.kept_ops(prepared, problem, bits)
    counter = Casts(prepared.lowered)
    result.ops = account.op_rows(prepared, problem, bits, counter)
    result.costs = account.costs(prepared, bits, counter, casts)
    result.islands = account.islands(prepared, bits, counter)
    result.front = account.front(problem, prepared.metric)
    result.remedies = account.remedies(prepared, problem, kept)
    result.package_bytes = emission.package_bytes(path)
    result.tolerated_overflows = [op.name for op in problem.overflows(best.kept)]
    metric = prepared.metric
    result.error = metric.loss_of(measured)
    result.heldout_error = metric.loss_of(held) if prepared.heldout.samples else None
    result.searched_error = metric.loss_of(best.loss)
    result.kept = kept
    result.casts, result.weights = casts, stored
    result.lower_bound, result.proven = bound, problem.proven
    if problem.contradicted:
        result.notes.append(
            "No lower bound: some set met the budget and a larger one broke it, so keeping "
            "more ops in FP32 can hurt here."
        )
    if result.tolerated_overflows:
        result.notes.append(_overflow_note(result.tolerated_overflows))
    result.explanation = _explain(result)
    result.config = _make_config(prepared, result, problem.seed, storage, stored_names)
    result._selector_source = emission.selector_source(
        prepared.precast, result.fp32_ops, _facts(prepared, result)
    )
    result._scratch = scratch
    return result


def _holding(prepared: Prepared, problem: Problem, limit: float) -> Trial | None:
    """The cheapest set tried that meets the budget on the held-out data as well."""
    held = prepared.heldout_evaluator(cache_bytes=_HELDOUT_CACHE)
    if held is None:
        return None
    for trial in sorted(problem.accepted(limit), key=lambda t: problem.rank(t.kept)):
        measured = held.evaluate(problem.vector(trial.kept), limit)
        if measured.exact and measured.loss <= limit:
            return trial
    return None


def _lower_bound(problem: Problem, limit: float, best: Trial) -> int | None:
    """The bound for the user's own budget, with the trials that the search left over."""
    if problem.objective != "ops":
        return None
    if not best.kept:
        return 0
    if problem.proven and problem.budget == limit:
        return sum(problem.vector(best.kept))
    proven = problem.proven
    problem.release()
    problem.tighten(limit)
    problem.proven = proven
    return problem.lower_bound()


def _overflow_note(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return (
        f"Left in FP16 although they overflow on the calibration data, within the budget: {shown}. "
        "Use --forbid-overflow to keep such ops FP32."
    )


def _tighter(budget: float, loss: float, limit: float, worst: float) -> float:
    """A budget that leaves room for what a set with ``loss`` overshot the limit by, and some.

    Losses in dB are negative, so the room is a difference there and a factor elsewhere.
    """
    least = min(budget, loss)
    if limit > 0:
        return least * _MARGIN * (limit / worst if math.isfinite(worst) else 1.0)
    return least - (worst - limit if math.isfinite(worst) else 0.0) - (1 - _MARGIN) * abs(limit)


def infeasible(
    prepared: Prepared, problem: Problem, started: float, held: float | None = None
) -> Result:
    """The result where even all-FP32 breaks the budget, with the reason."""
    result = _result(prepared, problem, started, "infeasible")
    if held is not None:
        result.heldout_error = prepared.metric.loss_of(held)
    result.explanation = _why_infeasible(prepared, problem, held)
    return result


def _result(prepared: Prepared, problem: Problem, started: float, status: str) -> Result:
    floor, fp16 = problem.ends()
    metric, evaluator = prepared.metric, problem.evaluator
    return Result(
        status=status,
        budget=metric.loss_of(problem.user_budget),
        metric=metric.name,
        error=metric.loss_of(floor),
        error_fp16=metric.loss_of(fp16),
        error_fp32=metric.loss_of(floor),
        candidate_ops=len(prepared.ops),
        evaluations=evaluator.counters.evaluations,
        op_executions=evaluator.counters.executions,
        forward_equivalents=evaluator.forward_equivalents,
        seconds=time.perf_counter() - started,
        minimised=problem.objective,
        notes=_notes(prepared),
        pinned_by_hazard=prepared.pinned_by_hazard,
        history=list(problem.history),
        study=problem.study,
    )


def _emit(
    prepared: Prepared,
    names: Sequence[str],
    path: Path,
    stored: tuple[str, Collection[str]] | None = None,
) -> tuple[verification.ReadBack, float, float]:
    """Write a package and measure it as read back: (package, loss, loss on held-out data)."""
    mlmodel = emission.convert(prepared.precast, emission.selector(names), stored)
    mlmodel.save(str(path))
    package = verification.read_back(path)
    wrong = verification.precision_mismatch(package, prepared.lowered, names)
    if wrong is not None:
        raise VerificationError(f"the written package is not what was searched: {wrong}")
    arguments = (prepared.metric, prepared.profiles)
    measured = verification.losses(package, prepared.calibration, prepared.references, *arguments)
    held = verification.losses(package, prepared.heldout, prepared.heldout_references, *arguments)
    return package, measured, held


def _store(
    prepared: Prepared,
    names: Sequence[str],
    path: Path,
    plain: tuple[verification.ReadBack, float, float],
    storage: str,
    limit: float,
) -> tuple[verification.ReadBack, float, float, weights.Stored, list[str]]:
    """Store as many weights otherwise as the budget allows, and read the package back."""
    before = emission.package_bytes(path)
    function = plain[0].function
    forms = weights.changed(function, storage)

    def holds(chosen: set[str]) -> bool:
        tried = replace(plain[0], function=weights.with_weights(function, forms, chosen))
        sets = (
            (prepared.calibration, prepared.references),
            (prepared.heldout, prepared.heldout_references),
        )
        return all(
            verification.losses(tried, data, wanted, prepared.metric, prepared.profiles) <= limit
            for data, wanted in sets
        )

    chosen = weights.largest_set(list(forms), holds)
    written = plain
    if chosen:
        written = _emit(prepared, names, path, (storage, chosen))
        if max(written[1:]) > limit:
            raise VerificationError(
                f"the package with weights stored as {storage} has another error than was measured"
            )
    stored = weights.Stored(storage, len(chosen), len(forms), before, emission.package_bytes(path))
    return (*written, stored, sorted(chosen))


def _explain(result: Result) -> str:
    kept, total = len(result.kept), result.candidate_ops
    if result.status == "fp16_suffices":
        return f"FP16 meets the budget as it is: none of {total} ops need FP32."
    found = f"{kept} of {total} ops stay FP32; the package, read back and run, meets the budget."
    if result.proven:
        found += " No cheaper set does: all were tried."
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
    limit, floor = problem.user_budget, problem.ends()[0]
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
    place = parting(prepared, problem.evaluator, account.harmful(prepared, problem))
    parts = "" if place is None else f", which is at {place}"
    return (
        f"{where}: precision is not the cause. The converted program already differs from the "
        "PyTorch model, so no FP32 op will help. Raise the budget, or change the model where the "
        f"two part{parts}."
    )


def _floor_with_fp32_io(prepared: Prepared, model: TorchModel) -> float:
    """The loss of all-FP32 when inputs and outputs are FP32 too."""
    precast = frontend.convert(model, prepared.given, prepared.precast.target, "fp32")
    lowered, ops = lower_candidates(precast.program, layer_of=precast.layer_of)
    samples = []
    for given in prepared.given:
        tensors = (v for v in given.values() if isinstance(v, torch.Tensor))
        wide = (v.float() if v.is_floating_point() else v.int() for v in tensors)
        samples.append(dict(zip(lowered.inputs, wide, strict=False)))
    evaluator = Evaluator(
        lowered,
        len(ops),
        samples,
        [dict(zip(lowered.outputs, r.values(), strict=True)) for r in prepared.references],
        prepared.metric,
        prepared.profiles,
        prepared.calibration.targets,
    )
    return evaluator.evaluate((True,) * len(ops)).loss


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("mpsearch", "coremltools", "torch", "numpy", "optuna")}


def _make_config(
    prepared: Prepared, result: Result, seed: int, storage: str | None, stored: list[str]
) -> Config:
    return Config(
        source=prepared.source,
        fingerprint=frontend.fingerprint(prepared.precast),
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
