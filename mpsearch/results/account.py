"""What a chosen set is made of and what it costs: the numbers behind the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from ..evaluation.metrics import Metric
from ..explain import remedies as _remedies
from ..explain.diagnosis import HARMFUL, Diagnosis, diagnosable
from ..explain.remedies import Remedy
from ..forking import each
from ..package.config import KeptOp
from ..program.lowering import CandidateOp
from ..program.precision import Precision
from ..scaling.exponents import Plan
from ..search.cost import Casts, Cost, cost
from ..search.problem import Problem
from ..search.record import Trial
from ..search.risk import Range, Risk
from ..search.rounding import RoundingModel
from ..source.prepare import Prepared
from .plain import number
from .result import Absorption, Headroom, OpRow, Rescaling, TrialRow

#: Up to so many kept ops are measured alone; more are predicted by the first-order model.
_MEASURED_ALONE = 64
#: Of the budget: what is predicted to be less is not measured alone. The model is of first order,
#: and right to a factor of two or three where it predicts so little.
_LITTLE = 0.25
#: On so many samples, those likeliest to break the budget. It is shown and decides nothing; what
#: overflows on any sample is known from the ranges.
_SAMPLES_ALONE = 1
#: Ops are listed that the next input may bring so near to FP16's range.
_NEAR = 4.0
#: The verdict on ops that break nothing alone: they are kept for what they add to others.
ADDS_UP = "adds up"


def harmful(metric: Metric, limit: float) -> float:
    """The relative L2 error from which on an op does harm: the budget, where that is one."""
    return limit if metric.name == "rel_l2" else HARMFUL


def kept_ops(
    prepared: Prepared, problem: Problem, precision: Precision, range_: Range
) -> tuple[KeptOp, ...]:
    """The kept ops, each with the error of the program when it alone is FP16, and why.

    It is measured where it may break the budget, and predicted where it does by far not.
    """
    kept = [op for op in prepared.ops if op.index in precision]
    measure = len(kept) <= _MEASURED_ALONE
    predicted = {op.index: math.sqrt(problem.guide.model.harm((op.index,), ())) for op in kept}
    losses = {i: math.inf if _finite(loss) is None else loss for i, loss in predicted.items()}
    with problem.evaluator.likeliest(_SAMPLES_ALONE):
        if measure:
            little = _LITTLE * problem.limit if prepared.metric.name == "rel_l2" else 0.0
            doubtful = [i for i, loss in losses.items() if loss >= little]
            losses |= _alone(problem, doubtful)
        breaking = [i for i, loss in losses.items() if loss > problem.limit]
        verdicts = _verdicts(prepared, problem, breaking) if measure else {}
    rest = ADDS_UP if measure else ""
    return tuple(
        KeptOp(
            op.name,
            op.type,
            op.layer,
            number(prepared.metric.loss_of(losses[op.index])),
            op.line,
            verdicts.get(op.index, "")
            if op.index in breaking
            else _rule(range_.risks[op.index])
            if op.index in range_.refused
            else rest,
        )
        for op in kept
    )


def _alone(problem: Problem, indices: Sequence[int]) -> dict[int, float]:
    """For each of these ops, the loss when it is FP16 and all others are FP32."""
    count = len(problem.question.ops)
    alone = [Precision.of(set(range(count)) - {index}, count) for index in indices]
    return dict(zip(indices, problem.evaluate_each(alone, "alone"), strict=True))


def _verdicts(prepared: Prepared, problem: Problem, kept: Sequence[int]) -> dict[int, str]:
    """Why FP16 breaks each op by itself, where that is known; not for ops in loops and branches."""
    if not kept:
        return {}
    samples = problem.evaluator.searched  # on which the ops were found to break the budget
    diagnosis = Diagnosis(problem.engine, harmful(prepared.metric, problem.limit), samples)
    nodes = diagnosable(problem.engine)
    known = [i for i in kept if i in nodes]
    found = each(lambda i: diagnosis.verdict(nodes[i])[0], known, problem.jobs)
    return {i: verdict for i, verdict in zip(known, found, strict=True) if verdict != "fine"}


def unmeasured(prepared: Prepared, precision: Precision) -> tuple[KeptOp, ...]:
    """The kept ops, before anything is known of each."""
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
    return {"fp16": fp16, "package": package, "fp32": fp32}


def islands(
    prepared: Prepared, precision: Precision, counter: Casts
) -> tuple[tuple[str, ...], ...]:
    """The FP32 islands, each with the names of its ops in execution order."""
    groups = counter.islands(precision)
    return tuple(tuple(prepared.ops[i].name for i in group) for group in groups)


def front(problem: Problem, metric: Metric) -> tuple[tuple[int, float | None], ...]:
    """FP32 ops and error of the trials that no other beats in both; infinite errors are None."""
    return tuple(
        (int(problem.question.rank(t.kept)[1]), number(metric.loss_of(t.seen)))
        for t in problem.record.undominated(problem.question)
    )


def rows(problem: Problem, metric: Metric) -> tuple[TrialRow, ...]:
    """The trials so far."""
    return tuple(row(trial, metric) for trial in problem.record.trials)


def row(trial: Trial, metric: Metric) -> TrialRow:
    """A trial, for people."""
    error = number(metric.loss_of(trial.seen))
    return TrialRow(trial.asked_by, trial.fp32_ops, error, trial.met, trial.exact)


def remedies(prepared: Prepared, range_: Range, kept: Sequence[KeptOp]) -> tuple[Remedy, ...]:
    """Changes to the model that would cost less than these ops in FP32."""
    index = {op.name: op.index for op in prepared.ops}
    verdicts = {index[op.name]: op.verdict for op in kept if op.verdict not in ("", ADDS_UP)}
    if not verdicts:
        return ()
    return tuple(_remedies.remedies(prepared.lowered, prepared.ops, verdicts, range_.largest))


def absorbed(
    range_: Range, ops: Sequence[CandidateOp], precision: Precision
) -> tuple[Absorption, ...]:
    """The overflows of ops in FP16 that do no harm, with what absorbs them."""
    return tuple(
        Absorption(ops[i].name, tuple(node.name for node in risk.absorbed.by))
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
