"""What is said of a result: the sentence at its top, and notes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..evaluation import coverage
from ..evaluation.evaluator import Evaluator
from ..evaluation.incremental import Incremental
from ..evaluation.metrics import Metric
from ..explain.parting import parting, where_of
from ..hints import argument, option
from ..options import IN_DB
from ..package.config import KeptOp
from ..program.lowering import lower_candidates
from ..program.precision import Precision
from ..result import Result
from ..results import rows
from ..results.data import Absorption
from ..results.plain import share
from ..search.criterion import amplitude
from ..search.samples import Kind
from ..source.conversion import convert
from ..source.modules import TorchModel
from ..source.prepare import Prepared
from .job import Job
from .validating import Validation


def overflow_note(names: Sequence[str]) -> str:
    return (
        "Left in FP16 although they overflow on the calibration data, within the budget: "
        f"{_some(names)}. "
        f"They may do harm on other inputs; without {option('tolerate_overflow')} they would be "
        "FP32."
    )


def absorbed_note(found: Sequence[Absorption]) -> list[str]:
    """What is left in FP16 although it overflows, and does no harm."""
    if not found:
        return []
    by = sorted({name for row in found for name in row.absorbed_by if name != row.name})
    one, single = len(found) == 1, len(by) == 1
    limits = " that leaves something unmasked; where all is masked, FP16 gives NaN"
    masked = limits if any(row.masks for row in found) else ""
    said = f"{_some([row.name for row in found])} overflow{'s' if one else ''} in FP16 without harm"
    if not by:
        return [f"{said}: what comes out is the same, for every input{masked}."]
    return [
        f"{said}: {_some(by)} read{'s' if single else ''} the result and "
        f"compute{'s' if single else ''} the same from infinity, for every input{masked}."
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def promise(job: Job, tested: Validation) -> str:
    """What held-out samples say of inputs that nobody has seen."""
    wanted, count = job.request.constraints, len(tested.losses)
    if not job.search.evaluations.evaluator.by_sample:
        return ""
    if job.prepared.calibration.noise:
        return "Nothing is promised of real inputs."
    if not tested.losses:
        return "No sample is left that the search has not seen, so nothing is promised of others."
    broken = sum(loss > job.search.problem.limit for loss in tested.losses)
    if tested.coverage is None:
        return (
            f"{broken or 'None'} of {count} held-out samples broke the budget. Another set failed "
            "on them before, so that they promise nothing of other inputs. New samples would: give "
            "them to check."
        )
    said = (
        f"{broken or 'None'} of {count} samples that the search never saw broke the budget: "
        f"{coverage.words(tested.coverage, wanted.confidence)}."
    )
    if tested.coverage < wanted.coverage:
        least = coverage.needed(wanted.coverage, wanted.confidence)
        given = math.ceil(least / job.request.heldout)
        said += f" {given} samples, {least} of them held out, would allow {wanted.coverage:.0%}."
    return said


def ops_rewritten(count: int) -> str:
    """How many ops are rewritten, in words."""
    return f"{count} op{'' if count == 1 else 's'} rewritten"


def opening(prepared: Prepared) -> str:
    """What comes first, where nobody gave data."""
    if not prepared.calibration.noise:
        return ""
    where = argument("inputs", "data")
    return f"No data given: drawn at random. Ranges on real data differ; see {where}.\n"


def explain(job: Job, facts: dict[str, Any]) -> str:
    """The first line: whether the package is ready, and how many ops stay FP32."""
    kept, total, status = len(facts["kept"]), facts["candidate_ops"], facts["status"]
    changes = [] if facts["rescaling"] is None else [facts["rescaling"].words]
    if facts["rewrites"]:
        changes.insert(0, ops_rewritten(len(facts["rewrites"])))
    changed = "; ".join(changes)
    if not kept and status == "fp16_suffices" and changed:
        return f"Ready: with {changed}, FP16 meets the budget; none of {total} ops needs FP32."
    if not kept and status == "fp16_suffices":
        return f"Ready: FP16 meets the budget as it is; none of {total} ops needs FP32."
    if status == "unwritten":
        return (
            f"Not ready: {kept} of {total} ops stay FP32, but there is no package: see the notes."
        )
    found = f"{kept} of {total} ops stay{'s' if kept == 1 else ''} FP32"
    found += f", with {changed}." if changed else "."
    most = facts["costs"]["package"].fp32_flops
    if most > _MOST:
        found += f" That is {share(most)} of the arithmetic: little of FP16's speed is left."
    if facts["proven"]:
        found += " No cheaper set meets the budget: all were tried."
    if status == "interrupted":
        ending = job.context.ending
        why = "the search was interrupted" if ending.interrupted else "the time was up"
        why = "the search ended early" if ending.reason else why
        on = option("resume") if job.request.execution.storage else ""
        found += f" {on} goes on from here." if on else ""
        return f"Ready, but {why}: in the best set so far {found}"
    return f"Ready: {found}"


def measured(job: Job, facts: dict[str, Any]) -> str:
    """The errors of the package beside the budget, and what has run it."""
    metric, budget = job.prepared.metric, facts["budget"]
    errors = sorted(facts["errors"], reverse=metric.larger_is_better)
    worst, count = errors[-1], len(errors)
    together = not job.search.evaluations.evaluator.by_sample
    given = len(job.prepared.calibration.samples) + len(job.prepared.heldout.samples)
    of = "" if count == given else f" of {given}"
    on = "" if together else f" on {count}{of} sample{'' if given == 1 else 's'}"
    said = f"Worst {metric.name} of the package{on}: {worst:.4g}"
    if metric.larger_is_better:
        side = "above" if worst >= budget else "below"
        said += f", {abs(worst - budget):.2g} {side} the budget {budget:g}"
    elif math.isfinite(worst) and budget:
        said += f", {100 * worst / budget:.3g}% of the budget {budget:g}"
    if count > 2:
        at = errors[math.ceil(0.95 * count) - 1]
        said += f" (median {errors[count // 2]:.3g}, 95% at {at:.3g} or better)"
    device = job.context.device
    return f"{said}. {'No device has run it.' if device is None else 'The device has run it.'}"


#: Verdicts on ops that FP16 breaks; by all others it only rounds.
_BROKEN = frozenset(["overflow", "underflow", "cancellation", "conflict", "alone"])
#: Verdicts on ops that are kept whatever the error.
_BY_RANGE = frozenset(["overflow", "may overflow", "may vanish"])
#: Budgets in dB below which next to nothing is asked.
_FEW_DB = 10.0
#: A share of the arithmetic in FP32 from which on FP16 pays little.
_MOST = 0.5
#: Relative budgets from which on next to nothing is asked.
_LOOSE = 0.5
#: The share of the budget from which on an error of all-FP32 is worth a note.
_CONVERTED = 0.1
#: An error from which on outputs are of no use, whatever is only rounded.
_USELESS = 0.1


def what_breaks(job: Job, facts: dict[str, Any]) -> str:
    """What of the FP32 ops mends what breaks, and what only buys digits; empty where all do one.

    An expert who hears both chooses the budget anew: a model that only rounds is seldom worth
    the FP32 that a tight budget asks for.
    """
    search, count = job.search, len(facts["kept"])
    problem, show = search.problem, job.prepared.metric.loss_of
    needed = len(problem.required)
    if not count or search.ending.over or problem.always != problem.required:
        return ""
    least = problem.precision(())  # nothing in FP32 but what overflows
    samples = list(search.samples)
    found = dict(zip(samples, search.evaluations.evaluate_all(least, samples), strict=True))
    loss = max(e.loss for s, e in found.items() if s.kind is Kind.CALIBRATION)
    most = max(evaluation.loss for evaluation in found.values())
    if needed and math.isfinite(loss) and needed < count:
        required = {problem.ops[i].name for i in problem.required}
        others = [op for op in facts["kept"] if op.name not in required]
        alone = [op for op in others if _breaks_alone(op, job.prepared.metric, problem.limit)]
        with_others = sum(op.verdict == rows.CONFLICT for op in others if op not in alone)
        rounding = count - needed - len(alone) - with_others
        return _cures(job, (needed, len(alone), with_others, rounding), loss, most)
    verdicts = {op.verdict for op in facts["kept"]}
    in_db = job.prepared.metric.larger_is_better
    useless = not in_db and loss >= _USELESS
    if needed or "" in verdicts or verdicts & _BROKEN or loss <= 0 or in_db or useless:
        return ""
    if not math.isfinite(most):
        return ""
    return (
        f"Nothing breaks in FP16, it only rounds: with no op in FP32 the error is "
        f"{show(loss):.2g}, and a budget of {_above(show(most)):g} needs none."
    )


def by_range(job: Job, kept: Sequence[KeptOp]) -> list[str]:
    """That ops are kept for their range although their error alone would be within the budget."""
    metric, limit = job.prepared.metric, job.search.limit
    found = [op for op in kept if op.verdict in _BY_RANGE and op.sensitivity is not None]
    count = sum(metric.loss_of(op.sensitivity) <= limit for op in found if op.sensitivity)
    if not count:
        return []
    each = "op is" if count == 1 else "ops are"
    every = job.fp16_loss
    kept_then = "it may keep as many"
    if every is not None and every <= limit:
        kept_then = "all FP16 is within the budget"
    return [
        f"{count} {each} kept for values that leave FP16's range, or may, although each alone is "
        "within the budget on the sample that it leaves the range on. "
        f"{option('tolerate_overflow')} asks for the error alone; {kept_then}."
    ]


def _breaks_alone(op: KeptOp, metric: Metric, limit: float) -> bool:
    return op.sensitivity is None or metric.loss_of(op.sensitivity) > limit


def _cures(job: Job, counts: tuple[int, int, int, int], loss: float, most: float) -> str:
    """How many ops are kept for what: overflows, what else breaks the budget, rounding.

    What breaks the budget does so alone, or together with a few others.
    ``loss`` is what the calibration samples give with only the first in FP32, and ``most`` what all
    samples give that the search knows.
    """
    metric, limit = job.prepared.metric, job.search.problem.limit
    needed, alone, with_others, rounding = counts
    error = metric.loss_of(loss if loss > limit else most)
    named = f"{metric.name} {error:.4g}" if metric.larger_is_better else f"error {error:.4g}"
    where = "" if loss > limit or most <= limit else ", on samples beside the calibration data"
    parts = [f"{needed} of them cure{'s' if needed == 1 else ''} what overflows ({named}{where})"]
    if alone:
        each = "breaks" if alone == 1 else "each break"
        parts.append(f"{alone} more {each} the budget alone in FP16")
    if with_others:
        each = "breaks" if with_others == 1 else "break"
        parts.append(f"{with_others} more {each} it with a few others")
    if rounding:
        keep = f"keep{'s' if rounding == 1 else ''} the rounding of all"
        side = "above" if metric.larger_is_better else "below"
        parts.append(f"{rounding} more {keep} {side} {metric.loss_of(limit):g}")
    return "; ".join(parts) + "."


def _above(error: float) -> float:
    """A round number a tenth above an error."""
    unit = 10.0 ** (math.floor(math.log10(1.1 * error)) - 1)
    return math.ceil(1.1 * error / unit) * unit


def notes(job: Job, notes: Sequence[str]) -> tuple[str, ...]:
    prepared, more = job.prepared, []
    if not prepared.heldout.samples:
        more.append("No held-out data: the error on other inputs is not known.")
    if prepared.torch_model is not None and prepared.torch_model.half:
        more.append(
            "The model has half-precision parts; an FP32 copy was searched and is the reference."
        )
    budget = prepared.metric.loss_of(job.search.problem.limit)
    if prepared.metric.name in IN_DB and budget < _FEW_DB:
        more.append(
            f"{prepared.metric.name} is in dB, and more is better: {budget:g} allows an error "
            "about as large as what is right. Pictures and sound need 30 to 60."
        )
    if prepared.metric.name == "rel_l2" and budget >= _LOOSE:
        more.append(f"A budget of {budget:g} allows errors of {budget:.0%}; 1% is 0.01, or 1%.")
    if job.context.ending.reason:
        more.append(job.context.ending.reason)
    return (*notes, *more)


def without_effect(job: Job, other: Job | None) -> tuple[str, ...]:
    """That options that were to change a program change nothing; ``other`` is what they gave."""
    conversion = job.request.conversion
    unused = []
    if conversion.rewrite and not (other and other.rewrites):
        unused.append(option("rewrite"))
    if conversion.rescale != "off" and not (other and other.plan.scales):
        unused.append(option("rescale", conversion.rescale))
    if not unused:
        return ()
    plain = job.search.known(())
    why = "no op that FP16 breaks allows it"
    if other is None and job.context.ending.over:
        why = "no time was left"
    elif other is None and plain is not None and plain.met:
        why = "FP16 meets the budget without"
    return (f"{' and '.join(unused)} changed nothing: {why}.",)


def left_out(other: Job, found: Result) -> tuple[str, ...]:
    """That the program is as it was, since a changed one keeps no fewer ops in FP32."""
    used = [option("rewrite")] if other.rewrites else []
    if other.plan.scales:
        used.append(option("rescale", other.request.conversion.rescale))
    stay = f"{len(found.kept)} of {found.candidate_ops} ops stay FP32"
    what = stay if found.met else "no set that was found meets the budget"
    return (f"{' and '.join(used)} is left out: with it {what}, which is no better than without.",)


def converted_note(job: Job) -> list[str]:
    """That the conversion, not FP16, takes a good part of the budget; and where it differs."""
    metric, limit, loss = job.prepared.metric, job.search.problem.limit, job.fp32_loss
    taken = amplitude(loss, limit) / amplitude(limit, limit)
    if taken < _CONVERTED:
        return []
    place = parting(
        job.prepared,
        job.search.evaluations.evaluator.engine,
        _CONVERTED * rows.harmful(metric, limit),
    )
    where = "" if place is None else f", at {where_of(job.prepared, place)}"
    return [
        f"With every op in FP32 the error is already {metric.loss_of(loss):.3g}, {share(taken)} of "
        f"the budget: the converted program differs from the PyTorch model{where}."
    ]


def why_infeasible(job: Job, held: float | None, package: float | None) -> str:
    """Why no set holds."""
    prepared, search = job.prepared, job.search
    show = prepared.metric.loss_of
    limit, floor = search.problem.limit, job.fp32_loss
    where = f"With every op in FP32 the error is {show(floor):.3g}"
    if held is not None and floor <= limit:
        return (
            f"{where} on the calibration data, but {show(held):.3g} on the held-out data, beyond "
            f"the budget {show(limit):g}."
        )
    if package is not None and floor <= limit:
        return (
            f"{where}, but {show(package):.3g} once the package is written: a pass of coremltools "
            "after the cast changes what the program computes (fuse_pow2_sqrt makes x of "
            "sqrt(x**2), for instance). Precision is not the cause; change the model there."
        )
    if floor <= limit:
        return "With the ops pinned to FP16, no choice for the others meets the budget; unpin some."
    where = f"{where}, beyond the budget {show(limit):g}"
    if prepared.io_dtype == "fp16" and prepared.torch_model is not None:
        plain = _loss_with_fp32_io(prepared, prepared.torch_model)
        if plain <= limit:
            return (
                f"{where}; with FP32 inputs and outputs it is {show(plain):.3g}: the FP16 inputs "
                f"and outputs cost the accuracy. Use {option('io_dtype', 'fp32')}."
            )
    place = parting(
        prepared, search.evaluations.evaluator.engine, rows.harmful(prepared.metric, limit)
    )
    parts = "" if place is None else f", which is at {where_of(prepared, place)}"
    return (
        f"{where}: precision is not the cause. The converted program already differs from the "
        "PyTorch model, so no FP32 op will help. Raise the budget, or change the model where the "
        f"two part{parts}."
    )


def _loss_with_fp32_io(prepared: Prepared, model: TorchModel) -> float:
    """The loss of all-FP32 when inputs and outputs are FP32 too."""
    precast = convert(model, prepared.given, prepared.precast.target, "fp32")
    lowered, ops = lower_candidates(precast.program, layer_of=precast.layer_of)
    samples = []
    for given, bound in zip(prepared.given, prepared.calibration.samples, strict=True):
        tensors = (v for v in given.values() if isinstance(v, torch.Tensor))
        wide = (v.float() if v.is_floating_point() else v.int() for v in tensors)
        states = {name: bound[name] for name in lowered.states}
        samples.append({**dict(zip(lowered.inputs, wide, strict=False)), **states})
    evaluator = Evaluator(
        Incremental(lowered, len(ops), samples, prepared.profiles),
        [dict(zip(lowered.outputs, r.values(), strict=True)) for r in prepared.references],
        prepared.metric,
        prepared.calibration.targets,
    )
    return evaluator.loss(Precision.all_fp32(len(ops)))
