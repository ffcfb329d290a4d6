"""The range of what every op computes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..evaluation.incremental import Incremental
from ..numerics.formats import FP16
from ..program.graph import Node


@dataclass(frozen=True, slots=True)
class Range:
    """What an op computes in FP32 over all samples.

    Attributes
    ----------
    largest, smallest
        Magnitudes: of all finite values, and of those that are not 0 (None where all are).
    below_normal
        The share of values that are not 0 and below FP16's normal range (2**-14).
    subnormal
        The share of those that FP16 holds with fewer digits; the others below it become 0.
    overflow
        The share of values that FP16 rounds to infinity (65520 and more).
    """

    largest: float
    smallest: float | None
    below_normal: float
    subnormal: float
    overflow: float


class _Tally:
    """Counts the values of an op."""

    def __init__(self) -> None:
        self._largest, self._smallest = 0.0, math.inf
        self._count = self._low = self._held = self._high = 0

    def add(self, value: Tensor) -> None:
        size = value.detach().abs().reshape(-1).double()
        size = size[torch.isfinite(size)]
        if not size.numel():
            return
        there = size[size > 0]
        self._largest = max(self._largest, float(size.max()))
        if there.numel():
            self._smallest = min(self._smallest, float(there.min()))
        small = there < FP16.smallest_normal
        self._count += size.numel()
        self._low += int(small.sum())
        self._held += int((small & (there > FP16.vanishes)).sum())
        self._high += int((size >= FP16.overflows).sum())

    def range(self) -> Range:
        count = max(self._count, 1)
        smallest = self._smallest if math.isfinite(self._smallest) else None
        shares = (n / count for n in (self._low, self._held, self._high))
        return Range(self._largest, smallest, *shares)


def ranges(engine: Incremental) -> dict[int, Range]:
    """What each candidate op of the outer block computes in FP32, by index."""
    found: dict[int, _Tally] = {}

    def see(node: Node, results: tuple[Any, ...]) -> None:
        if node.candidate is None:
            return
        for value in results:
            if isinstance(value, Tensor) and value.is_floating_point():
                found.setdefault(node.candidate, _Tally()).add(value)

    for sample in range(engine.samples):
        engine.trace(sample, see)
    return {op: tally.range() for op, tally in found.items()}
