"""What is wrong, where: every op's range, sensitivity and verdict, without a budget."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

from .. import options
from ..evaluation.evaluator import Evaluator
from ..evaluation.incremental import Incremental
from ..explain.diagnosis import HARMFUL, Diagnosis
from ..explain.parting import parting
from ..explain.ranges import ranges
from ..explain.remedies import remedies
from ..program.graph import Node
from ..program.precision import Precision
from ..results.analysis import Analysis, OpAnalysis
from ..search.cost import Casts
from ..search.rounding import rounding_model_of
from ..source.prepare import Prepared, check_device, prepare
from .progress import Progress
from .surroundings import undisturbed

#: Ops predicted to do at least this share of harm are run alone.
_SUSPECT = 0.1
#: With no more ops than these, all are run alone.
_FEW = 64


@undisturbed
def analyze(
    model: Any,
    inputs: Any,
    metric: str | Callable[..., float] = "rel_l2",
    *,
    targets: Any = None,
    budget: float | None = None,
    numerics: str = "ieee",
    target: str = "iOS17",
    seed: int = 0,
    io_dtype: str | None = None,
    states: Iterable[str] = (),
    device: str = "cpu",
    cache_bytes: int | None = None,
    progress: bool | None = None,
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
    check_device(device)
    seed = options.seed(seed)
    if budget is not None:
        budget = options.positive(budget, "budget")
    bar = Progress(progress)
    with closing(bar):
        bar.stage("converting")
        prepared = prepare(model, inputs, metric, numerics, target, 0.0, io_dtype, states, targets)
        evaluator = prepared.evaluator(device, cache_bytes)
        bar.stage("measuring all-FP32 and all-FP16")
        count = len(prepared.ops)
        floor = evaluator.evaluate(Precision.all_fp32(count)).loss
        fp16 = evaluator.evaluate(Precision.all_fp16(count)).loss
        bar.stage("looking at every op")
        harmful = HARMFUL if budget is None else budget
        ops = _ops(prepared, evaluator, harmful, seed)
        is_precision = prepared.metric.larger_is_better or floor <= harmful
        place = None if is_precision else parting(prepared, evaluator.backend, harmful)
    loss_of = prepared.metric.loss_of
    found = Analysis(ops, prepared.metric.name, loss_of(floor), loss_of(fp16), is_precision)
    found.parts_at = None if place is None else place.name
    found.explanation = _explain(found, place)
    if is_precision:
        harm = {i: op.verdict for i, op in enumerate(ops) if op.verdict != "fine"}
        largest = {i: op.range.largest for i, op in enumerate(ops) if op.range is not None}
        found.remedies = remedies(prepared.lowered, prepared.ops, harm, largest)
    found.notes += prepared.notes
    if prepared.calibration.noise:
        found.notes.append("The data is random: real inputs may have other ranges.")
    return found


def _ops(
    prepared: Prepared, evaluator: Evaluator[Incremental], harmful: float, seed: int
) -> list[OpAnalysis]:
    engine = evaluator.backend
    found = ranges(engine)
    reads = Casts(prepared.lowered).reads()
    nodes: dict[int, Node] = {
        n.candidate: n for n in engine.nodes if n.candidate is not None and not n.blocks
    }
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
                op.name,
                op.type,
                op.layer,
                verdict,
                sensitivity,
                measured,
                found.get(op.index),
                op.line,
                [prepared.ops[i].name for i in sorted(reads.get(op.index, ()))],
            )
        )
    return out


def _explain(found: Analysis, place: Node | None) -> str:
    if not found.is_precision:
        where = "" if place is None else f" The two part at {place}."
        return (
            f"Not precision: with every op in FP32 the error is already {found.error_fp32:.3g}. "
            "The converted program differs from the PyTorch model, so no FP32 op will help."
            f"{where}"
        )
    culprits = found.culprits
    if not culprits:
        return "No op alone does harm in FP16."
    kinds = Counter(op.verdict for op in culprits)
    said = ", ".join(f"{n} by {kind}" for kind, n in kinds.most_common())
    first = culprits[0]
    where = f" in {first.layer}" if first.layer else ""
    where += f", {first.line}" if first.line else ""
    return (
        f"{len(culprits)} of {len(found.ops)} ops do harm alone in FP16: {said}. The worst is "
        f"{first.name} ({first.type}{where})."
    )
