"""What is wrong, where: every op's range, sensitivity and verdict, without a budget."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from .. import options
from ..evaluation.evaluator import Evaluator
from ..explain.diagnosis import HARMFUL, Diagnosis, Judge, diagnosable, judge
from ..explain.parting import parting, where_of
from ..explain.ranges import ranges
from ..explain.remedies import Remedy, remedies
from ..numerics.choosing import Numerics
from ..options import IN_DB, Conversion, Execution
from ..program.graph import Node
from ..program.precision import Precision
from ..results.analysis import Analysis, OpAnalysis, ranked
from ..results.plain import in_metric
from ..search.cost import Casts
from ..search.rounding_hooks import rounding_model_of
from ..source.prepare import Prepared, check_device, prepare
from . import messages
from .isolation import isolated
from .progress import Progress

#: Ops predicted to do at least this share of harm are run alone.
_SUSPECT = 0.1
#: With no more ops than these, all are run alone.
_FEW = 64


@isolated
def analyze(
    model: Any,
    data: Any,
    metric: str | Callable[..., float] = "rel_l2",
    *,
    targets: Any = None,
    budget: float | None = None,
    numerics: Numerics = "ieee",
    conversion: Conversion = Conversion(),
    execution: Execution = Execution(),
) -> Analysis:
    """Say of every op what FP16 does to it, and why.

    Parameters are those of :func:`mpsearch.optimize`. ``budget``, where given, says from which
    error on an op counts as harmful, and how far the all-FP32 program may be from the PyTorch
    model. Without one, and for metrics of all samples together, that is a relative L2 error of
    2**-9, whatever the metric.

    Raises
    ------
    InputError
        If something given cannot be used.
    """
    options.group(conversion, Conversion, "conversion")
    options.group(execution, Execution, "execution")
    check_device(execution.device)
    bar = Progress(execution.progress)
    with closing(bar):
        bar.stage("converting")
        prepared = prepare(model, data, metric, numerics, conversion, targets=targets)
        evaluator = prepared.evaluator(execution.device, execution.cache_bytes)
        bar.stage("measuring all-FP32 and all-FP16")
        count = len(prepared.ops)
        floor = evaluator.loss(Precision.all_fp32(count))
        fp16 = evaluator.loss(Precision.all_fp16(count))
        bar.stage("looking at every op")
        measure, loss_of = prepared.metric, prepared.metric.loss_of
        if budget is not None:
            budget = loss_of(options.budget(budget, measure.larger_is_better))
        errors = judge(measure, budget)
        ops = _ops(prepared, evaluator, errors, execution.seed)
        is_precision = _agree(prepared, evaluator, errors)
        harmful = errors.harmful if errors.name == "rel_l2" else HARMFUL
        place = None if is_precision else parting(prepared, evaluator.engine, harmful)
    rescue: list[Remedy] = []
    if is_precision:
        harm = {i: op.verdict for i, op in enumerate(ops) if op.verdict != "fine"}
        largest = {i: op.range.largest for i, op in enumerate(ops) if op.range is not None}
        rescue = remedies(prepared.lowered, prepared.ops, harm, largest)
    return Analysis(
        metric=measure.name,
        alone_by=errors.name,
        error_fp32=loss_of(floor),
        error_fp16=loss_of(fp16),
        is_precision=is_precision,
        explanation=messages.opening(prepared)
        + _explain(prepared, ops, errors, loss_of(floor), is_precision, place),
        parts_at=None if place is None else place.name,
        notes=prepared.notes,
        remedies=tuple(rescue),
        ops=tuple(ops),
    )


def _agree(prepared: Prepared, evaluator: Evaluator, errors: Judge) -> bool:
    """Whether all-FP32 is as near to the PyTorch model as an op must be to do no harm."""
    engine, every = evaluator.engine, Precision.all_fp32(len(prepared.ops))
    found = (engine.outputs(every, sample) for sample in range(engine.samples))
    return all(
        errors.error(reference, outputs) <= errors.harmful
        for reference, outputs in zip(prepared.references, found, strict=True)
    )


def _ops(prepared: Prepared, evaluator: Evaluator, errors: Judge, seed: int) -> list[OpAnalysis]:
    engine = evaluator.engine
    found = ranges(engine)
    reads = Casts(prepared.lowered).reads()
    nodes = diagnosable(engine)
    model = rounding_model_of(evaluator, seed)
    diagnosis = Diagnosis(engine, errors)
    harmful = errors.harmful if errors.relative else HARMFUL
    few = len(prepared.ops) <= _FEW
    special = {op.type for op in prepared.ops if any(p.treats(op.type) for p in prepared.profiles)}
    out = []
    for op in prepared.ops:
        verdict, measured = "fine", False
        sensitivity = math.sqrt(model.harm((op.index,), ()))
        # What a profile does inside an op, and what flips an index, is beyond first order.
        suspect = few or sensitivity >= _SUSPECT * harmful or op.type in special
        if op.index in nodes and suspect:
            verdict, sensitivity = diagnosis.verdict(nodes[op.index])
            measured = True
        out.append(
            OpAnalysis(
                name=op.name,
                type=op.type,
                layer=op.layer,
                verdict=verdict,
                sensitivity=sensitivity,
                measured=measured,
                range=found.get(op.index),
                line=op.line,
                reads=tuple(prepared.ops[i].name for i in sorted(reads.get(op.index, ()))),
            )
        )
    return out


def _explain(
    prepared: Prepared,
    ops: Sequence[OpAnalysis],
    errors: Judge,
    floor: float,
    is_precision: bool,
    place: Node | None,
) -> str:
    worse = "below" if errors.name in IN_DB else "above"
    culprits = ranked(ops)
    harm = f"{errors.name} {worse} {in_metric(errors.harmful, errors.name):.3g}"
    if not is_precision:
        where = "" if place is None else f" The two part at {where_of(prepared, place)}."
        more = f" {len(culprits)} of {len(ops)} ops do harm in FP16 besides." if culprits else ""
        return (
            f"Not precision: with every op in FP32 the error is already {floor:.3g} ({harm}). "
            "The converted program differs from the PyTorch model, so FP32 ops bring it no lower."
            f"{where}{more}"
        )
    if not culprits:
        return f"No op alone does harm in FP16 ({harm})."
    kinds = Counter(op.verdict for op in culprits)
    said = ", ".join(f"{n} by {kind}" for kind, n in kinds.most_common())
    if len(kinds) == 1:
        said = f"by {culprits[0].verdict}"
    first = culprits[0]
    where = f" in {first.layer}" if first.layer else ""
    where += f", {first.line}" if first.line else ""
    return (
        f"{len(culprits)} of {len(ops)} ops do harm alone in FP16 ({harm}): {said}. The worst is "
        f"{first.name} ({first.type}{where})."
    )
