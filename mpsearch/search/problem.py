"""What is asked: which ops must be FP32 for the error to stay within a limit, at the least cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ..program.candidates import CandidateOp
from ..program.precision import Precision
from .cost import Casts, op_cost

UnitSet = frozenset[int]  # units by number, in FP32


@dataclass(frozen=True, slots=True)
class Unit:
    """Candidate ops that are decided together."""

    name: str
    ops: tuple[int, ...]


def units(ops: Sequence[CandidateOp], free: Iterable[int], by: str = "op") -> tuple[Unit, ...]:
    """What is decided: each free op, or (``by="layer"``) the free ops of each layer."""
    if by == "op":
        return tuple(Unit(ops[i].name, (i,)) for i in free)
    layers: dict[str, list[int]] = {}
    for i in free:
        layers.setdefault(ops[i].layer or ops[i].name, []).append(i)
    return tuple(Unit(name, tuple(members)) for name, members in layers.items())


@dataclass(frozen=True)
class Problem:
    """The question that a search answers. Nothing in it changes.

    Attributes
    ----------
    units
        What can be decided, in execution order.
    ops
        All candidate ops, in the order of their indices.
    limit
        The largest loss allowed: the budget, or its negative for measures in dB.
    always
        Candidates that are FP32 whatever is decided.
    objective
        What is minimized, one of :data:`mpsearch.options.MINIMIZED`.
    casts
        Counts casts; without it, sets differ by their price and their number of ops alone.
    required
        Candidates of ``always`` that cannot be FP16, since they overflow there or soon will
        (:mod:`mpsearch.search.risk`).
    harmless
        Names of the ops that may be infinite or NaN; a set is refused in which others are. None
        where that is left to the loss.
    tolerance
        The share of perturbed samples that may break the limit.
    seed
        For everything random.
    """

    units: tuple[Unit, ...]
    ops: Sequence[CandidateOp]
    limit: float
    always: frozenset[int] = frozenset()
    objective: str = "ops"
    casts: Casts | None = None
    required: frozenset[int] = frozenset()
    harmless: frozenset[str] | None = None
    tolerance: float = 0.05
    seed: int = 0
    _ranks: dict[UnitSet, tuple[float, float, int]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def of_ops(
        cls, ops: Sequence[CandidateOp], limit: float, casts: Casts | None = None, seed: int = 0
    ) -> Problem:
        """Every op decided by itself, none pinned."""
        return cls(units(ops, range(len(ops))), ops, limit, casts=casts, seed=seed)

    @cached_property
    def all_units(self) -> UnitSet:
        """All units, numbered in execution order."""
        return frozenset(range(len(self.units)))

    @property
    def pinned(self) -> bool:
        """Whether some candidate ops are decided already, other than by what FP16 can hold."""
        return sum(len(u.ops) for u in self.units) + len(self.required) < len(self.ops)

    @cached_property
    def pinned_fp16(self) -> frozenset[int]:
        """Candidates that are FP16 whatever is decided."""
        free = {i for u in self.units for i in u.ops}
        return frozenset(range(len(self.ops))) - free - self.always

    @cached_property
    def cost(self) -> tuple[float, ...]:
        """What each unit costs in FP32 by itself."""
        return tuple(sum(op_cost(self.ops[i], self.objective) for i in u.ops) for u in self.units)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """A name for each unit that no other has."""
        return tuple(f"{i}:{unit.name}" for i, unit in enumerate(self.units))

    def precision(self, fp32: Iterable[int]) -> Precision:
        """The precision when these units are FP32, pinned ops included."""
        ops = set(self.always)
        for unit in fp32:
            ops.update(self.units[unit].ops)
        return Precision(frozenset(ops), len(self.ops))

    def price(self, fp32: Iterable[int]) -> float:
        """What a set costs in the objective."""
        return self.rank(fp32)[0]

    def rank(self, fp32: Iterable[int]) -> tuple[float, float, int]:
        """How good a set is that holds, smaller being better: price, ops, casts."""
        key = frozenset(fp32)
        found = self._ranks.get(key)
        if found is None:
            casts = 0 if self.casts is None else self.casts.count(self.precision(key))
            price = sum(self.cost[i] for i in key) + (casts if self.objective == "casts" else 0)
            found = price, float(sum(len(self.units[i].ops) for i in key)), casts
            self._ranks[key] = found
        return found
