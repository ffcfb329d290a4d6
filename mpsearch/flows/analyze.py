"""What is wrong, where: every op's range, sensitivity and verdict, without a budget."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from .. import options
from ..evaluation.evaluator import Evaluator
from ..explain.diagnosis import HARMFUL, Diagnosis, diagnosable
from ..explain.parting import parting
from ..explain.ranges import ranges
from ..explain.remedies import Remedy, remedies
from ..numerics.choosing import Numerics
from ..options import Conversion, Execution
from ..program.graph import Node
from ..program.precision import Precision
from ..results.analysis import Analysis, OpAnalysis, ranked
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
    relative L2 error on an op counts as harmful, and how far the all-FP32 program may be from the
    PyTorch model; 2**-9 otherwise.

    Raises
    ------
    InputError
        If something given cannot be used.
    """
    options.group(conversion, Conversion, "conversion")
    options.group(execution, Execution, "execution")
    check_device(execution.device)
    if budget is not None:
        budget = options.positive(budget, "budget")
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
        harmful = HARMFUL if budget is None else budget
        ops = _ops(prepared, evaluator, harmful, execution.seed)
        is_precision = prepared.metric.larger_is_better or floor <= harmful
        place = None if is_precision else parting(prepared, evaluator.engine, harmful)
    loss_of = prepared.metric.loss_of
    rescue: list[Remedy] = []
    if is_precision:
        harm = {i: op.verdict for i, op in enumerate(ops) if op.verdict != "fine"}
        largest = {i: op.range.largest for i, op in enumerate(ops) if op.range is not None}
        rescue = remedies(prepared.lowered, prepared.ops, harm, largest)
    return Analysis(
        metric=prepared.metric.name,
        error_fp32=loss_of(floor),
        error_fp16=loss_of(fp16),
        is_precision=is_precision,
        explanation=messages.opening(prepared)
        + _explain(ops, loss_of(floor), is_precision, place, harmful),
        parts_at=None if place is None else place.name,
        notes=prepared.notes,
        remedies=tuple(rescue),
        ops=tuple(ops),
    )


def _ops(prepared: Prepared, evaluator: Evaluator, harmful: float, seed: int) -> list[OpAnalysis]:
    engine = evaluator.engine
    found = ranges(engine)
    reads = Casts(prepared.lowered).reads()
    nodes = diagnosable(engine)
    model = rounding_model_of(evaluator, seed)
    diagnosis = Diagnosis(engine, harmful)
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
    ops: Sequence[OpAnalysis],
    floor: float,
    is_precision: bool,
    place: Node | None,
    harmful: float,
) -> str:
    if not is_precision:
        where = "" if place is None else f" The two part at {place}."
        return (
            f"Not precision: with every op in FP32 the error is already {floor:.3g}. "
            "The converted program differs from the PyTorch model, so no FP32 op will help."
            f"{where}"
        )
    culprits = ranked(ops)
    if not culprits:
        return "No op alone does harm in FP16."
    kinds = Counter(op.verdict for op in culprits)
    said = ", ".join(f"{n} by {kind}" for kind, n in kinds.most_common())
    if len(kinds) == 1:
        said = f"by {culprits[0].verdict}"
    first = culprits[0]
    where = f" in {first.layer}" if first.layer else ""
    where += f", {first.line}" if first.line else ""
    return (
        f"{len(culprits)} of {len(ops)} ops do harm alone in FP16, an error above {harmful:.3g}: "
        f"{said}. The worst is {first.name} ({first.type}{where})."
    )
