"""What is asked: which ops must be FP32 for the loss to stay within a limit, at the least cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ..program.lowering import CandidateOp
from ..program.precision import Precision
from .cost import Casts, op_cost

Kept = frozenset[int]  # units kept in FP32


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
class Question:
    """The question that a search answers.

    Attributes
    ----------
    units
        What can be decided, in execution order.
    ops
        All candidate ops, in the order of their indices.
    limit
        The largest loss allowed (the budget; its negative for measures in dB).
    always
        Candidates that are FP32 whatever is decided.
    objective
        What is minimized, one of :data:`mpsearch.options.MINIMIZED`.
    casts
        Counts casts; without, sets are told apart by their price and their number of ops alone.
    required
        Candidates of ``always`` that cannot be FP16, since they overflow there or soon will
        (:mod:`mpsearch.search.risk`).
    forced
        Units that every set must hold, as was found while searching.
    harmless
        Names of the ops that may be infinite or NaN; sets are refused in which others are. None
        where that is left to the loss.
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
    forced: Kept = frozenset()
    harmless: frozenset[str] | None = None
    seed: int = 0
    _ranks: dict[Kept, tuple[float, float, int]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def of_ops(
        cls, ops: Sequence[CandidateOp], limit: float, casts: Casts | None = None, seed: int = 0
    ) -> Question:
        """Every op decided by itself, none pinned."""
        return cls(units(ops, range(len(ops))), ops, limit, casts=casts, seed=seed)

    @cached_property
    def everything(self) -> Kept:
        """All units."""
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
        """Per unit, what keeping it in FP32 costs by itself."""
        return tuple(sum(op_cost(self.ops[i], self.objective) for i in u.ops) for u in self.units)

    def precision(self, kept: Iterable[int]) -> Precision:
        """The precision when these units are FP32, pinned ops included."""
        fp32 = set(self.always)
        for unit in kept:
            fp32.update(self.units[unit].ops)
        return Precision(frozenset(fp32), len(self.ops))

    def price(self, kept: Iterable[int]) -> float:
        """What keeping these units costs in the objective."""
        return self.rank(kept)[0]

    def rank(self, kept: Iterable[int]) -> tuple[float, float, int]:
        """How good a set is that meets the limit, smaller being better: price, ops, casts."""
        key = frozenset(kept)
        found = self._ranks.get(key)
        if found is None:
            casts = 0 if self.casts is None else self.casts.count(self.precision(key))
            price = sum(self.cost[i] for i in key) + (casts if self.objective == "casts" else 0)
            found = price, float(sum(len(self.units[i].ops) for i in key)), casts
            self._ranks[key] = found
        return found

    def far_beyond(self, loss: float) -> bool:
        """Whether a loss is so far beyond the limit that no other rounding could undo it."""
        return loss > 2 * self.limit if self.limit > 0 else loss > self.limit + 6  # dB
