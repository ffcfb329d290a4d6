"""Which ops are FP32 and which FP16: the one spelling of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Precision:
    """The candidate ops in FP32, by index; the others, of ``count`` in all, are FP16.

    ``op in precision`` asks whether an op is FP32, ``len(precision)`` counts those that are, and
    iteration gives them in execution order.
    """

    fp32: frozenset[int]
    count: int

    @classmethod
    def of(cls, fp32: Iterable[int], count: int) -> Precision:
        """The named candidates in FP32."""
        return cls(frozenset(fp32), count)

    @classmethod
    def all_fp32(cls, count: int) -> Precision:
        """Every candidate in FP32."""
        return cls(frozenset(range(count)), count)

    @classmethod
    def all_fp16(cls, count: int) -> Precision:
        """Every candidate in FP16."""
        return cls(frozenset(), count)

    @property
    def fp16(self) -> frozenset[int]:
        """The candidates in FP16."""
        return frozenset(range(self.count)) - self.fp32

    def __contains__(self, op: object) -> bool:
        return op in self.fp32

    def __len__(self) -> int:
        return len(self.fp32)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self.fp32))
