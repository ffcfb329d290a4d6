"""What a chosen set is made of and what it costs: the numbers behind the report."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

import msgspec

from ..evaluation.metrics import Metric
from ..explain import remedies as _remedies
from ..explain.diagnosis import HARMFUL, Diagnosis, diagnosable, judge
from ..explain.remedies import Remedy
from ..package.config import KeptOp
from ..program.candidates import CandidateOp
from ..program.precision import Precision
from ..scaling.exponents import Plan
from ..search.cost import Casts, Cost, cost
from ..search.problem import Problem
from ..search.risk import Range, Risk
from ..search.rounding import RoundingModel
from ..search.samples import Sample, hardest_first
from ..search.search import Conflict, Search, Trial
from ..source.prepare import Prepared
from .data import Absorption, Headroom, OpRow, Rescaling, TrialRow
from .plain import number

#: An op is run alone in FP16 where this share of the budget is predicted at least, or it is part of
#: a conflict. The model is of first order, and right to a factor of three.
_DOUBTFUL = 1 / 3
#: So many ops are run alone at most, those of the largest predictions.
_MOST_ALONE = 64
#: Ops are listed that the next input may bring so near to FP16's range.
_NEAR = 4.0
#: The verdicts on ops that break nothing alone: they break a sample together with a few others, or
#: are kept for what they add to the rounding of all.
CONFLICT, ROUNDING = "conflict", "rounding"
#: The verdict on ops that break a sample alone, for a cause that was not found: in loops, branches.
ALONE = "alone"
#: The verdicts on ops that the user keeps in FP32, and on those of a layer that is decided as a
#: whole, and has another op that FP16 cannot hold.
PINNED, LAYER = "pinned", "layer"
_HARMLESS = ("", CONFLICT, ROUNDING, PINNED, LAYER)


def harmful(metric: Metric, limit: float) -> float:
    """The relative L2 error from which on an op does harm: the budget, where that is one."""
    return limit if metric.name == "rel_l2" else HARMFUL


def kept_ops(
    prepared: Prepared, search: Search, fp32: Precision, range_: Range, pinned: Collection[str]
) -> tuple[KeptOp, ...]:
    """The FP32 ops, each with its error alone in FP16, and the reason why it is kept.

    The error is measured where it may break the budget, and predicted where it does by far not: on
    the sample that the op overflows on, or a conflict is of, or that the set without it fails on,
    or else the hardest; of a conflict also on others that sets were judged on. What is measured is
    remembered as a conflict where it breaks the budget. ``pinned`` are names of ops that a rule
    keeps.
    """
    problem, show = search.problem, prepared.metric.loss_of
    conflicts = {op: c for c in search.conflicts for u in c.units for op in problem.units[u].ops}
    predicted = {i: search.ranking.model.harm((i,), ()) for i in fp32}
    losses = {i: math.sqrt(error) if error < 1e12 else math.inf for i, error in predicted.items()}
    little = _DOUBTFUL * search.limit if prepared.metric.name == "rel_l2" else 0.0
    refused = range_.refused
    doubtful = [i for i in fp32 if losses[i] >= little or i in conflicts or i in refused]
    doubtful.sort(key=lambda i: (i not in refused, -losses[i]))
    places = {s.index: s for s in search.samples if s.firm}
    hardest = hardest_first(places.values(), search.evaluations.losses)[0]
    at = {}
    failing = _failing_without(search, fp32)
    for i in doubtful[:_MOST_ALONE]:
        at[i] = failing.get(i, hardest)
        at[i] = places.get(range_.risks[i].sample, hardest) if i in refused else at[i]
        at[i] = conflicts[i].sample if i in conflicts else at[i]
    losses |= _alone(search, at)
    others = [s for s in search.samples.judged if s.firm]
    near = [i for i in at if i in conflicts and losses[i] <= search.limit]
    more = [(i, s) for i in near for s in others if s != at[i]][: _MOST_ALONE - len(at)]
    for i, sample in more:
        if losses[i] <= search.limit and (found := _alone(search, {i: sample})[i]) > losses[i]:
            losses[i], at[i] = found, sample
    _remember(search, {i: losses[i] for i in at}, at)
    causes = _causes(prepared, search, [i for i in at if losses[i] > search.limit], at)
    kept = []
    for i in fp32:
        op = prepared.ops[i]
        where = places.get(range_.risks[i].sample) if i in refused else None
        verdict, reason = _reason(i, range_, where, conflicts.get(i), problem)
        if i in problem.required - refused:
            verdict, reason = LAYER, "its layer is decided as a whole, and has an op that overflows"
        if i in at and losses[i] > search.limit:
            verdict = causes.get(i) or (ALONE if verdict in ("", CONFLICT) else verdict)
            reason = f"alone in FP16 it breaks {at[i]}"
        if not reason:
            verdict = ROUNDING
            reason = "what it adds to the rounding of others breaks the budget"
        if op.name in pinned and i not in range_.refused:
            verdict, reason = PINNED, "a pin or a rule keeps it"
        error = number(show(losses[i]))
        kept.append(KeptOp(op.name, op.type, op.layer, error, op.line, verdict, reason))
    return tuple(kept)


def _failing_without(search: Search, fp32: Precision) -> dict[int, Sample]:
    """A given sample that the set fails on without an op's unit, where that was judged."""
    units = search.problem.units
    chosen = {u for u, unit in enumerate(units) if all(op in fp32 for op in unit.ops)}
    failing: dict[int, Sample] = {}
    for unit in chosen:
        trial = search.known(chosen - {unit})
        firm = [sample for sample in trial.offenders if sample.firm] if trial else []
        failing |= {op: firm[0] for op in units[unit].ops if firm}
    return failing


def _alone(search: Search, at: dict[int, Sample]) -> dict[int, float]:
    """The losses of ops that alone are FP16, each on a sample."""
    count = len(search.problem.ops)
    alone = {i: Precision.of(set(range(count)) - {i}, count) for i in at}
    return {i: search.evaluations.evaluate(alone[i], sample).loss for i, sample in at.items()}


def _remember(search: Search, losses: dict[int, float], at: dict[int, Sample]) -> None:
    """Units of one op that break a sample alone are conflicts: lower bounds rest on them."""
    known = {conflict.units for conflict in search.conflicts}
    for unit, found in enumerate(search.problem.units):
        if len(found.ops) == 1 and losses.get(found.ops[0], -math.inf) > search.limit:
            units = frozenset({unit})
            if units not in known and at[found.ops[0]].firm:
                search.conflicts.append(Conflict(units, at[found.ops[0]], losses[found.ops[0]]))


def _reason(
    op: int,
    range_: Range,
    sample: Sample | None,
    conflict: Conflict | None,
    problem: Problem,
) -> tuple[str, str]:
    """The verdict on an op, and why it is kept, as far as is known without running it."""
    if op in range_.refused:
        risk = range_.risks[op]
        where = str(sample or "a sample") if risk.seen else "other inputs"
        share = risk.headroom if risk.seen else risk.expected
        what = "it is {:.2g} times what rounds to 0" if risk.vanishes else "FP16 holds {:.2g} of it"
        verdict = "overflow" if _rule(risk) == "overflows" else _rule(risk)
        return verdict, f"on {where}, {what.format(share)}"
    if conflict is None:
        return "", ""
    others = [problem.units[unit].name for unit in sorted(conflict.units)]
    listed = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    return CONFLICT, f"in FP16 {listed} together break {conflict.sample} ({conflict.loss:.2g})"


def _causes(
    prepared: Prepared, search: Search, ops: Sequence[int], at: dict[int, Sample]
) -> dict[int, str]:
    """Why FP16 breaks each op by itself, where that is known; not for ops in loops and branches."""
    engine = search.evaluations.evaluator.engine
    nodes = diagnosable(engine)
    found = {}
    for sample in {at[i] for i in ops}:
        # Half: what all-FP32 differs by from the reference is part of the errors that break.
        by = judge(prepared.metric, search.limit)
        by = replace(by, harmful=by.harmful / 2)
        diagnosis = Diagnosis(engine, by, [sample.index])
        for i in ops:
            if at[i] == sample and i in nodes:
                found[i] = diagnosis.verdict(nodes[i])[0]
    return {i: verdict for i, verdict in found.items() if verdict != "fine"}


def unmeasured(prepared: Prepared, precision: Precision) -> tuple[KeptOp, ...]:
    """The FP32 ops, before anything is known of each."""
    kept = (op for op in prepared.ops if op.index in precision)
    return tuple(KeptOp(op.name, op.type, op.layer, None, op.line) for op in kept)


def op_rows(
    prepared: Prepared, model: RoundingModel | None, precision: Precision, counter: Casts
) -> tuple[OpRow, ...]:
    """Every candidate op: its precision, what it reads, and its sensitivity as a model predicts."""
    reads = counter.reads()
    return tuple(
        OpRow(
            op.name,
            op.type,
            op.layer,
            op.line,
            op.index in precision,
            None if model is None else _finite(math.sqrt(model.harm((op.index,), ()))),
            tuple(prepared.ops[i].name for i in sorted(reads.get(op.index, ()))),
        )
        for op in prepared.ops
    )


def as_measured(row: OpRow, kept: KeptOp | None, metric: str) -> OpRow:
    """The row of a kept op with what was measured of it instead of what was predicted."""
    if kept is None or (metric != "rel_l2" and kept.sensitivity is not None):
        return row
    return msgspec.structs.replace(row, sensitivity=kept.sensitivity)


def _finite(sensitivity: float) -> float | None:
    """None where the model says that the op overflows: it then gives a number without meaning."""
    return sensitivity if sensitivity < 1e6 else None


def costs(prepared: Prepared, precision: Precision, counter: Casts, casts: int) -> dict[str, Cost]:
    """The cost of all-FP16, of the package (with ``casts`` as counted in it), and of all-FP32."""
    fp16 = cost(prepared.ops, counter, Precision.all_fp16(precision.count))
    fp32 = cost(prepared.ops, counter, Precision.all_fp32(precision.count))
    mine = cost(prepared.ops, counter, precision)
    package = Cost(mine.fp32_ops, mine.islands, casts, mine.weight_bytes, mine.fp32_flops)
    fp16, fp32 = (package if mine == end else end for end in (fp16, fp32))
    return {"fp16": fp16, "package": package, "fp32": fp32}


def islands(
    prepared: Prepared, precision: Precision, counter: Casts
) -> tuple[tuple[str, ...], ...]:
    """The FP32 islands, each with the names of its ops in execution order."""
    groups = counter.islands(precision)
    return tuple(tuple(prepared.ops[i].name for i in group) for group in groups)


def front(search: Search, metric: Metric) -> tuple[tuple[int, float | None], ...]:
    """FP32 ops and error of the sets that no other beats in both; infinite errors are None."""
    return tuple((t.fp32_ops, number(metric.loss_of(t.loss))) for t in undominated(search))


def undominated(search: Search) -> list[Trial]:
    """Sets that no other beats in both FP32 ops and loss, the fewest ops first.

    Their losses are the worst on given samples: of perturbed ones a share may break the budget.
    """
    found: list[Trial] = []
    exact = [t for t in map(partial(_on_given, search), search.trials) if t.exact]
    for trial in sorted(exact, key=lambda t: (t.fp32_ops, t.loss, sorted(t.fp32))):
        if not found or trial.loss < found[-1].loss:
            found.append(trial)
    return found


def _on_given(search: Search, trial: Trial) -> Trial:
    known = search.evaluations.known(search.problem.precision(trial.fp32))
    losses = [found.loss for sample, found in known.items() if sample.firm]
    return replace(trial, loss=max(losses, default=trial.loss))


def trial_rows(search: Search, metric: Metric) -> tuple[TrialRow, ...]:
    """The trials so far."""
    return tuple(trial_row(trial, metric) for trial in search.trials)


def trial_row(trial: Trial, metric: Metric) -> TrialRow:
    """A trial, for people."""
    error = number(metric.loss_of(trial.loss))
    met = trial.met if trial.exact or trial.offenders else None
    return TrialRow(trial.asked_by, trial.fp32_ops, error, met, trial.exact)


def remedies(prepared: Prepared, range_: Range, kept: Sequence[KeptOp]) -> tuple[Remedy, ...]:
    """Changes to the model that would cost less than these ops in FP32."""
    index = {op.name: op.index for op in prepared.ops}
    verdicts = {index[op.name]: op.verdict for op in kept if op.verdict not in _HARMLESS}
    if not verdicts:
        return ()
    return tuple(_remedies.remedies(prepared.lowered, prepared.ops, verdicts, range_.largest))


def absorbed(
    range_: Range, ops: Sequence[CandidateOp], precision: Precision
) -> tuple[Absorption, ...]:
    """The overflows of ops in FP16 that do no harm, with what absorbs them."""
    return tuple(
        Absorption(ops[i].name, tuple(node.name for node in risk.absorbed.by), risk.absorbed.masks)
        for i, risk in sorted(range_.risks.items())
        if risk.absorbed is not None and risk.seen and i not in precision
    )


def headroom(range_: Range, ops: Sequence[CandidateOp]) -> tuple[Headroom, ...]:
    """The ops that come near FP16's range, or leave it, the nearest first."""
    near = [(risk.expected, i, risk) for i, risk in range_.risks.items() if risk.expected < _NEAR]
    return tuple(
        Headroom(ops[i].name, risk.headroom, expected, _rule(risk))
        for expected, i, risk in sorted(near, key=lambda row: row[:2])
    )


def rescaling(mode: str, plan: Plan) -> Rescaling | None:
    """How the program is scaled; None where it is not."""
    if not plan.scales:
        return None
    return Rescaling(mode, plan.scales, plan.tensors, plan.folded, plan.inserted, plan.words)


def _rule(risk: Risk) -> str:
    if not risk.overflows:
        return "fits"
    if risk.absorbed is not None:
        return "absorbed"
    if risk.vanishes:
        return "may vanish"
    return "overflows" if risk.seen else "may overflow"
