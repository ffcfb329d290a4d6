"""What ``analyze`` answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from ..explain.diagnosis import VERDICTS
from ..explain.ranges import Range
from ..explain.remedies import Remedy
from .answer import Answer


class OpAnalysis(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate op.

    Attributes
    ----------
    verdict
        One of :data:`mpsearch.explain.diagnosis.VERDICTS`.
    sensitivity
        The error of the outputs, against all-FP32, when this op alone is FP16, by the metric
        ``alone_by``; of those in dB the amplitude, 10^(-dB / 20). Null in JSON where infinite.
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
    reads: tuple[str, ...] = ()


class LayerAnalysis(msgspec.Struct, frozen=True, kw_only=True):
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


def ranked(ops: Sequence[OpAnalysis]) -> list[OpAnalysis]:
    """The harmful ops, the worst first."""
    found = [op for op in ops if op.verdict != "fine"]
    return sorted(found, key=lambda op: (-op.sensitivity, VERDICTS.index(op.verdict)))


class Analysis(Answer, frozen=True, kw_only=True, dict=True):
    """What :func:`mpsearch.analyze` found.

    Attributes
    ----------
    error_fp32, error_fp16
        The errors of the all-FP32 and the all-FP16 program against the PyTorch model.
    is_precision
        Whether the all-FP32 program agrees with the PyTorch model, so that precision can help.
    alone_by
        The metric of the errors of ops alone: ``metric`` with a budget, ``rel_l2`` without one.
    parts_at
        Where precision is not the cause: the name of the first op whose FP32 result differs from
        what PyTorch computes there; None where that cannot be told.
    remedies
        Changes to the PyTorch model that would cost less than FP32
        (:mod:`mpsearch.explain.remedies`).
    explanation
        The finding in a sentence.
    """

    ERRORS: ClassVar[tuple[str, ...]] = ("error_fp32", "error_fp16", "ops.sensitivity")

    metric: str
    error_fp32: float
    error_fp16: float
    is_precision: bool
    explanation: str
    alone_by: str = "rel_l2"
    parts_at: str | None = None
    notes: tuple[str, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    ops: tuple[OpAnalysis, ...] = ()

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
            found.append(
                LayerAnalysis(
                    layer=layer,
                    ops=len(ops),
                    harmful=sum(op.verdict != "fine" for op in ops),
                    verdict=worst.verdict,
                    sensitivity=worst.sensitivity,
                    line=worst.line,
                )
            )
        return sorted(found, key=lambda row: (row.harmful == 0, -row.sensitivity))

    @property
    def culprits(self) -> list[OpAnalysis]:
        """The harmful ops, the worst first."""
        return ranked(self.ops)

    def as_dict(self) -> dict[str, Any]:
        """What ``mpsearch analyze --json`` prints. Infinite values are null."""
        layers = msgspec.json.decode(msgspec.json.encode(self.layers))
        return {**Answer.as_dict(self), "layers": layers}
