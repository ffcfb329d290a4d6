"""What a search has found, as the result that the caller gets: built once, complete."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ..ending import Stage, Stop
from ..evaluation.metrics import NAMES
from ..explain.remedies import Remedy
from ..package import emission
from ..package.config import Config, InputSpec, KeptOp, StoredWeights
from ..package.matching import graph
from ..program.precision import Precision
from ..result import PACKAGE, Files, Result
from ..results import rows
from ..results.data import OpRow
from ..results.plain import number
from ..search.conflicts import lower_bound
from ..search.search import Trial
from ..source.identity import versions
from ..temporary import TemporaryFolder
from ..usercode import reason
from . import messages
from .job import Job
from .progress import Progress
from .rescaling import hint
from .validating import Validation
from .writing import Written


@dataclass(frozen=True)
class Found:
    """A set, written and read back.

    Attributes
    ----------
    directory
        Where the package is.
    finished
        Whether the search came to its own end.
    proven
        Whether every cheaper set was tried.
    notes
        What is to be said beside the numbers.
    validation
        What held-out samples said of it.
    """

    trial: Trial
    precision: Precision
    written: Written
    directory: TemporaryFolder
    finished: bool
    proven: bool
    notes: tuple[str, ...]
    validation: Validation


@dataclass
class _Extras:
    """What only the report needs, as far as the time reached."""

    kept: tuple[KeptOp, ...]
    ops: tuple[OpRow, ...]
    counted: dict[str, Any]
    lower_bound: int | None = None
    tolerated_overflows: tuple[str, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    hint: str = ""
    not_measured: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def outcome(job: Job, found: Found, bar: Progress) -> Result:
    """The result where a package meets the budget."""
    metric, written = job.prepared.metric, found.written
    extras = _extras(job, found, bar)
    names = [op.name for op in extras.kept]
    status = "met" if names else "fp16_suffices"
    wanted = job.request.constraints
    facts = _common(job, found.precision, found.written.package.casts) | extras.counted
    facts |= {
        "status": status if found.finished else "interrupted",
        "error": metric.loss_of(written.loss),
        "errors": tuple(map(metric.loss_of, (*written.losses, *found.validation.losses))),
        "heldout_error": metric.loss_of(found.validation.worst)
        if found.validation.losses
        else None,
        "heldout_samples": len(found.validation.losses),
        "heldout_broken": sum(loss > job.search.problem.limit for loss in found.validation.losses),
        "coverage": found.validation.coverage,
        "confidence": None if found.validation.coverage is None else wanted.confidence,
        "sequence": found.validation.sequence,
        "proven": found.proven,
        "weights": written.stored,
        "package_bytes": emission.package_bytes(found.directory.path / PACKAGE),
        "kept": extras.kept,
        "ops": extras.ops,
        "lower_bound": extras.lower_bound,
        "tolerated_overflows": extras.tolerated_overflows,
        "remedies": extras.remedies,
        "rescale_hint": extras.hint,
        "not_measured": (*extras.not_measured, *_unmeasured_baselines(job)),
    }
    facts["notes"] = (
        *messages.notes(job, found.notes),
        *messages.absorbed_note(facts["absorbed_overflows"]),
        *extras.notes,
    )
    said = (
        messages.explain(job, facts),
        messages.measured(job, facts),
        messages.what_breaks(job, facts),
        messages.promise(job, found.validation),
    )
    facts["explanation"] = messages.opening(job.prepared) + "\n".join(filter(None, said))
    job.search.store()
    return _built(job, facts, found.directory, written.stored_names)


def unwritten(job: Job, best: Trial, error: Exception) -> Result:
    """The result where no package could be written: the choice, as the search measured it."""
    precision = job.search.problem.precision(best.fp32)
    casts = job.casts.count(precision)
    loss = job.prepared.metric.loss_of(best.loss)
    said = (
        f"The package could not be written ({reason(error)}); the choice is in op_selector.py and "
        "precision.json. Make room, then run mpsearch apply."
    )
    missing = ("alone", "sensitivity", "lower_bound", "rescale", "remedies")
    facts = _common(job, precision, casts) | _counted(job)
    facts |= {
        "status": "unwritten",
        "error": loss,
        "kept": rows.unmeasured(job.prepared, precision),
        "ops": rows.op_rows(job.prepared, None, precision, job.casts),
        "not_measured": (*missing, *_unmeasured_baselines(job)),
        "notes": (*messages.notes(job, job.notes), said),
    }
    facts["explanation"] = messages.opening(job.prepared) + messages.explain(job, facts)
    return _built(job, facts, None, ())


def infeasible(job: Job, held: float | None = None, package: float | None = None) -> Result:
    """The result where even all-FP32 breaks the budget, with the reason.

    ``held`` and ``package`` are its losses on held-out data, and of the package as written.
    """
    loss_of = job.prepared.metric.loss_of
    facts = _baselines(job) | _counted(job)
    facts |= {
        "status": "infeasible",
        "error": facts["error_fp32"],
        "heldout_error": None if held is None else loss_of(held),
        "explanation": messages.opening(job.prepared) + messages.why_infeasible(job, held, package),
        "not_measured": _unmeasured_baselines(job),
        "notes": messages.notes(job, job.notes),
        "kept": (),
        "costs": {},
        "islands": (),
        "ops": (),
        "front": (),
    }
    return Result(**facts, seconds=_seconds(job)).with_files(
        None, job.search.evaluations.study.optuna
    )


def _built(
    job: Job,
    facts: dict[str, Any],
    directory: TemporaryFolder | None,
    stored_names: tuple[str, ...],
) -> Result:
    """The result, with the config and the selector that belong to it."""
    job.context.ending.stage = Stage.WRITE
    config = _config(job, facts, stored_names)
    source = emission.selector_source(
        job.prepared.precast,
        [op.name for op in facts["kept"]],
        _facts(job, facts),
        bool(job.plan.scales or job.rewrites),
    )
    result = Result(**facts, seconds=_seconds(job))
    return result.with_files(Files(config, source, directory), job.search.evaluations.study.optuna)


def _seconds(job: Job) -> float:
    return round(time.perf_counter() - job.context.started, 3)


# -- the parts of a result ------------------------------------------------------------------------


def _baselines(job: Job) -> dict[str, Any]:
    """What is known of a model before a search."""
    prepared, problem = job.prepared, job.search.problem
    fp16 = _fp16_loss(job)
    loss_of = prepared.metric.loss_of
    return {
        "budget": loss_of(problem.limit),
        "metric": prepared.metric.name,
        "error_fp16": None if fp16 is None else loss_of(fp16),
        "error_fp32": loss_of(job.fp32_loss),
        "candidate_ops": len(prepared.ops),
        "minimized": problem.objective,
        "understood": prepared.understood,
        "pinned_by_hazard": job.pinned_by_hazard,
    }


def _unmeasured_baselines(job: Job) -> tuple[str, ...]:
    return ("error_fp16",) if _fp16_loss(job) is None else ()


def _fp16_loss(job: Job) -> float | None:
    """The loss of all-FP16; None where there is no time to measure it."""
    try:
        return job.fp16_loss
    except Stop:
        return None


def _common(job: Job, precision: Precision, casts: int) -> dict[str, Any]:
    """What is known of a set without running anything."""
    return _baselines(job) | {
        "casts": casts,
        "costs": rows.costs(job.prepared, precision, job.casts, casts),
        "islands": rows.islands(job.prepared, precision, job.casts),
        "front": rows.front(job.search, job.prepared.metric),
        "absorbed_overflows": rows.absorbed(job.range, job.prepared.ops, precision),
        "headroom": rows.headroom(job.range, job.prepared.ops),
        "rescaling": rows.rescaling(job.request.conversion.rescale, job.plan),
        "rewrites": job.rewrites,
    }


def _counted(job: Job) -> dict[str, Any]:
    """What the search has cost so far."""
    evaluations = job.search.evaluations
    engine = evaluations.evaluator.engine
    return {
        "evaluations": evaluations.precisions,
        "op_executions": engine.executions,
        "forward_equivalents": round(engine.forward_equivalents, 3),
        "trials": rows.trial_rows(job.search, job.prepared.metric),
    }


def _extras(job: Job, found: Found, bar: Progress) -> _Extras:
    """What only the report needs, in the order of its worth, as far as the time reaches."""
    prepared, search, precision = job.prepared, job.search, found.precision
    problem = search.problem
    extras = _Extras(
        rows.unmeasured(prepared, precision),
        rows.op_rows(prepared, None, precision, job.casts),
        _counted(job),
    )

    def bound() -> None:
        extras.lower_bound, note = _lower_bound(job, found)
        extras.notes += [note] if note else []

    def alone() -> None:
        pinned = {op.name for i, op in enumerate(prepared.ops) if i in problem.always}
        pinned -= {op.name for i, op in enumerate(prepared.ops) if i in problem.required}
        extras.kept = rows.kept_ops(prepared, search, precision, job.range, pinned)
        extras.notes += messages.by_range(job, extras.kept)
        if problem.harmless is None:
            engine = search.evaluations.evaluator.engine
            harmless = {row.name for row in rows.absorbed(job.range, prepared.ops, precision)}
            names = [prepared.ops[i].name for i in sorted(engine.overflows(precision))]
            overflowing = tuple(name for name in names if name not in harmless)
            extras.tolerated_overflows = overflowing
            if overflowing:
                extras.notes.append(messages.overflow_note(overflowing))

    def sensitivity() -> None:
        every = rows.op_rows(prepared, search.ranking.model, precision, job.casts)
        measured = "alone" not in extras.not_measured
        known = {op.name: op for op in extras.kept} if measured else {}
        name = prepared.metric.name
        extras.ops = tuple(rows.as_measured(row, known.get(row.name), name) for row in every)

    def rescale() -> None:
        extras.hint = hint(job, {op.name for op in extras.kept})

    def remedies() -> None:
        extras.notes += messages.converted_note(job)
        extras.remedies = rows.remedies(prepared, job.range, extras.kept)

    stages: dict[str, tuple[Callable[[], None], str]] = {
        "alone": (alone, "measuring the FP32 ops alone"),
        "lower_bound": (bound, "bounding"),
        "sensitivity": (sensitivity, "predicting the sensitivity of every op"),
        "rescale": (rescale, "looking for exponents"),
        "remedies": (remedies, "looking for remedies"),
    }
    search.ending.stage = Stage.EXTRAS
    for name, (work, said) in stages.items():
        bar.stage(said)
        try:
            search.ending.check()
            work()
        except Stop:
            extras.not_measured.append(name)
    if extras.not_measured:
        extras.notes.append("The run ended before the report was complete; what it lacks is '-'.")
    return extras


def _lower_bound(job: Job, found: Found) -> tuple[int | None, str]:
    """At least so many ops are FP32, where a bound can be had; and what to say of it."""
    search, problem = job.search, job.search.problem
    whole = found.trial.fp32 == problem.all_units
    if not found.finished or whole or problem.pinned or search.required:
        return None, ""
    if problem.objective != "ops" or job.request.constraints.by == "layer":
        return None, ""
    price = found.trial.price if found.proven else lower_bound(search)
    if price is not None:
        return round(price) + len(problem.required), ""
    return None, (
        "No lower bound: some set met the budget and a larger one broke it, so keeping more ops "
        "in FP32 can hurt here."
    )


# -- what is written besides the package ----------------------------------------------------------


def _config(job: Job, facts: dict[str, Any], stored_names: tuple[str, ...]) -> Config:
    request, prepared = job.request, job.prepared
    dtype = request.conversion.weight_dtype
    stored = {"dtype": dtype, "names": stored_names}
    states = () if prepared.torch_model is None else prepared.torch_model.states
    place = {(op.name, op.type, op.layer): op.index for op in prepared.ops}
    conversion = msgspec.structs.replace(
        request.conversion,
        target=prepared.precast.target,
        io_dtype=prepared.io_dtype,
        states=tuple(states),
    )
    errors = ("error", "error_fp16", "error_fp32", "heldout_error")
    return Config(
        source=job.name,
        fingerprint=prepared.fingerprint,
        versions=versions(),
        metric=facts["metric"],
        custom_metric=facts["metric"] not in NAMES,
        budget=facts["budget"],
        numerics=",".join(p.name for p in prepared.profiles),
        heldout=request.heldout,
        strategy=request.strategy_name,
        conversion=conversion,
        constraints=request.constraints,
        limits=request.limits,
        # Where this run kept its study, and who helped, says nothing of the set, and may hold a
        # password.
        execution=msgspec.structs.replace(
            request.execution, storage=None, resume=False, cluster=None
        ),
        errors={name: number(facts.get(name)) for name in errors},
        inputs=tuple(
            msgspec.convert({"name": p.name, "dtype": p.dtype, "shape": p.shape}, InputSpec)
            for p in prepared.inputs
        ),
        fp32_ops=facts["kept"],
        graph=graph(prepared.ops),
        places=tuple(place[op.name, op.type, op.layer] for op in facts["kept"]),
        weights=msgspec.convert(stored, StoredWeights) if stored_names else None,
        rewrites=job.rewrites,
        scales=job.plan.scales,
    )


def _facts(job: Job, facts: dict[str, Any]) -> dict[str, str]:
    fp16 = facts["error_fp16"]
    fp16_said = f"all FP16: {'not measured' if fp16 is None else f'{fp16:.3g}'}"
    held_out = facts.get("heldout_error")
    held = "" if held_out is None else f"held-out: {held_out:.3g}, "
    return {
        "model": f"{job.name}, {len(job.prepared.ops)} ops that can be cast",
        "kept in FP32": f"{len(facts['kept'])} ops",
        "metric": f"{facts['metric']}, budget {facts['budget']:g}",
        "error": f"{facts['error']:.3g} ({held}{fp16_said}, all FP32: {facts['error_fp32']:.3g})",
        "numerics": ",".join(p.name for p in job.prepared.profiles),
        "target": job.prepared.precast.target,
        "made with": ", ".join(f"{k} {v}" for k, v in versions().items()),
    }
