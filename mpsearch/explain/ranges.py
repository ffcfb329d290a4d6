"""The range of what every op computes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..evaluation.incremental import Incremental
from ..program.graph import Node

#: FP16's smallest normal number, what it rounds to 0, and what it rounds to infinity.
_NORMAL, _VANISHES, _INFINITE = 2.0**-14, 2.0**-25, 65520.0


@dataclass(slots=True)
class Range:
    """What an op computes in FP32 over all samples.

    Attributes
    ----------
    largest, smallest
        Magnitudes: of all finite values, and of those that are not 0.
    below_normal
        The share of values that are not 0 and below FP16's normal range (2**-14).
    subnormal
        The share of those that FP16 holds with fewer digits; the others below it become 0.
    overflow
        The share of values that FP16 rounds to infinity (65520 and more).
    """

    largest: float = 0.0
    smallest: float = math.inf
    below_normal: float = 0.0
    subnormal: float = 0.0
    overflow: float = 0.0
    _count: int = 0

    def add(self, value: Tensor) -> None:
        """Take in one value of the op."""
        size = value.detach().abs().reshape(-1).double()
        size = size[torch.isfinite(size)]
        if not size.numel():
            return
        there = size[size > 0]
        self.largest = max(self.largest, float(size.max()))
        if there.numel():
            self.smallest = min(self.smallest, float(there.min()))
        before, self._count = self._count, self._count + size.numel()
        low = float((there < _NORMAL).sum())
        held = float(((there < _NORMAL) & (there > _VANISHES)).sum())
        high = float((size >= _INFINITE).sum())
        self.below_normal = (self.below_normal * before + low) / self._count
        self.subnormal = (self.subnormal * before + held) / self._count
        self.overflow = (self.overflow * before + high) / self._count


def ranges(engine: Incremental) -> dict[int, Range]:
    """What each candidate op of the outer block computes in FP32, by index."""
    found: dict[int, Range] = {}

    def see(node: Node, results: tuple[Any, ...]) -> None:
        if node.candidate is None:
            return
        for value in results:
            if isinstance(value, Tensor) and value.is_floating_point():
                found.setdefault(node.candidate, Range()).add(value)

    for sample in range(engine.samples):
        engine.trace(sample, see)
    return found
