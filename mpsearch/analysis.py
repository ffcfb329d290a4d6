"""What is wrong, where: every op's range, sensitivity and verdict, without a budget."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import frontend, options
from .cost import Casts
from .diagnosis import VERDICTS, Diagnosis
from .evaluator import Evaluator
from .executor.graph import Node
from .prepare import Prepared, check_device, prepare
from .progress import Progress
from .ranges import Range, ranges
from .remedies import Remedy, remedies
from .result import number
from .surroundings import undisturbed

#: Harm, where no budget says what it is: four times FP16's own rounding.
HARMFUL = 2.0**-9
#: Ops predicted to do at least this share of harm are run alone.
_SUSPECT = 0.1
#: With no more ops than these, all are run alone.
_FEW = 64


@dataclass(slots=True)
class OpAnalysis:
    """One candidate op.

    Attributes
    ----------
    verdict
        One of :data:`mpsearch.diagnosis.VERDICTS`.
    sensitivity
        The relative L2 error of the outputs, against all-FP32, when this op alone is FP16.
    measured
        Whether that was measured; the first-order model predicts it for ops that do no harm.
    range
        What it computes; None for ops inside loops and branches.
    line
        The line of Python that it came from, as ``file:line``; empty where unknown.
    reads
        The candidate ops whose results it reads, by name.
    """

    name: str
    type: str
    layer: str
    verdict: str
    sensitivity: float
    measured: bool
    range: Range | None
    line: str = ""
    reads: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LayerAnalysis:
    """The candidate ops of one PyTorch module.

    Attributes
    ----------
    ops, harmful
        How many there are, and how many of them do harm alone in FP16.
    verdict, sensitivity, line
        Those of the worst.
    """

    layer: str
    ops: int
    harmful: int
    verdict: str
    sensitivity: float
    line: str


@dataclass(slots=True)
class Analysis:
    """What :func:`analyze` found.

    Attributes
    ----------
    error_fp32, error_fp16
        The errors of the all-FP32 and the all-FP16 program against the PyTorch model.
    is_precision
        Whether the all-FP32 program agrees with the PyTorch model, so that precision can help.
    parts_at
        Where precision is not the cause: the name of the first op whose FP32 result differs from
        what PyTorch computes there; None where that cannot be told.
    remedies
        Changes to the PyTorch model that would cost less than FP32 (:mod:`mpsearch.remedies`).
    explanation
        The finding in a sentence.
    """

    ops: list[OpAnalysis]
    metric: str
    error_fp32: float
    error_fp16: float
    is_precision: bool
    explanation: str = ""
    parts_at: str | None = None
    notes: list[str] = field(default_factory=list)
    remedies: list[Remedy] = field(default_factory=list)

    @property
    def layers(self) -> list[LayerAnalysis]:
        """The ops by PyTorch module, the worst module first; ops of no module are left out."""
        groups: dict[str, list[OpAnalysis]] = {}
        for op in self.ops:
            if op.layer:
                groups.setdefault(op.layer, []).append(op)
        found = []
        for layer, ops in groups.items():
            worst = max(ops, key=lambda op: (op.verdict != "fine", op.sensitivity))
            harmful = sum(op.verdict != "fine" for op in ops)
            found.append(
                LayerAnalysis(
                    layer, len(ops), harmful, worst.verdict, worst.sensitivity, worst.line
                )
            )
        return sorted(found, key=lambda row: (row.harmful == 0, -row.sensitivity))

    @property
    def culprits(self) -> list[OpAnalysis]:
        """The harmful ops, the worst first."""
        found = [op for op in self.ops if op.verdict != "fine"]
        return sorted(found, key=lambda op: (-op.sensitivity, VERDICTS.index(op.verdict)))

    def as_dict(self) -> dict[str, Any]:
        """What ``mpsearch analyze --json`` prints. Infinite values are null."""
        return {
            "metric": self.metric,
            "error_fp32": number(self.error_fp32),
            "error_fp16": number(self.error_fp16),
            "is_precision": self.is_precision,
            "parts_at": self.parts_at,
            "explanation": self.explanation,
            "notes": self.notes,
            "remedies": [{**asdict(r), "code": r.code} for r in self.remedies],
            "layers": [{**asdict(r), "sensitivity": number(r.sensitivity)} for r in self.layers],
            "ops": [_plain(op) for op in self.ops],
        }


def _plain(op: OpAnalysis) -> dict[str, Any]:
    out = asdict(op)
    out["sensitivity"] = number(op.sensitivity)
    if op.range is not None:
        keys = ("largest", "smallest", "below_normal", "subnormal", "overflow")
        out["range"] = {key: number(getattr(op.range, key)) for key in keys}
    return out


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
        floor = evaluator.evaluate((True,) * count).loss
        fp16 = evaluator.evaluate((False,) * count).loss
        bar.stage("looking at every op")
        harmful = HARMFUL if budget is None else budget
        ops = _ops(prepared, evaluator, harmful, seed)
        is_precision = prepared.metric.larger_is_better or floor <= harmful
        place = None if is_precision else parting(prepared, evaluator, harmful)
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


def _ops(prepared: Prepared, evaluator: Evaluator, harmful: float, seed: int) -> list[OpAnalysis]:
    found = ranges(evaluator)
    reads = Casts(prepared.lowered).reads()
    nodes: dict[int, Node] = {
        n.candidate: n for n in evaluator.nodes if n.candidate is not None and not n.blocks
    }
    model = evaluator.rounding_model(seed)
    diagnosis = Diagnosis(evaluator, harmful)
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


def parting(prepared: Prepared, evaluator: Evaluator, limit: float) -> Node | None:
    """The first op whose result in all-FP32 is not what the PyTorch model computes there."""
    if prepared.torch_model is None:
        return None
    every = frozenset(range(evaluator.candidates))
    for sample, given in enumerate(prepared.given):
        values = frontend.intermediates(prepared.torch_model, given, prepared.precast.kind)
        wanted = _counterparts(evaluator.nodes, values)
        found: list[Node] = []

        def see(
            node: Node,
            results: tuple[Any, ...],
            wanted: dict[str, Tensor] = wanted,
            found: list[Node] = found,
        ) -> None:
            if not found and node.name in wanted and _differs(results[0], wanted[node.name], limit):
                found.append(node)

        evaluator.trace(every, sample, see)
        if found:
            return found[0]
    return None


def _counterparts(nodes: Sequence[Node], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Op name -> the PyTorch value that it stands for.

    What coremltools lowers to several ops has them named after the one value with a suffix each;
    the last of them stands for it.
    """
    found: dict[str, Tensor] = {}
    last: dict[str, str] = {}
    for node in nodes:
        for name in (node.result, node.name):
            if name in values:
                found[node.name] = values[name]
                break
        else:
            parts = node.name.split("_")
            for end in range(len(parts) - 1, 0, -1):
                if (prefix := "_".join(parts[:end])) in values:
                    last[prefix] = node.name
                    break
    for prefix, name in last.items():
        found.setdefault(name, values[prefix])
    return found


def _differs(value: Any, wanted: Tensor, limit: float) -> bool:
    """Whether a float value is further than ``limit`` from another, in relative L2."""
    if not isinstance(value, Tensor) or not wanted.is_floating_point():
        return False
    if value.shape != wanted.shape or not value.numel():
        return False  # a layout of coremltools' own
    size = float(torch.linalg.vector_norm(wanted.double()))
    off = float(torch.linalg.vector_norm(value.double().cpu() - wanted.double().cpu()))
    return off > limit * size if math.isfinite(size) else False


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
