"""What ``analyze`` finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..explain.diagnosis import VERDICTS
from ..explain.ranges import Range
from ..explain.remedies import Remedy
from .plain import number


@dataclass(slots=True)
class OpAnalysis:
    """One candidate op.

    Attributes
    ----------
    verdict
        One of :data:`mpsearch.explain.diagnosis.VERDICTS`.
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
    """What :func:`mpsearch.analyze` found.

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
        Changes to the PyTorch model that would cost less than FP32
        (:mod:`mpsearch.explain.remedies`).
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
