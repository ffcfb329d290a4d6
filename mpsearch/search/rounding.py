"""A first-order model of rounding: which tensors hurt how much when they are rounded to FP16.

FP16 error is a sum of small perturbations, one for every *tensor* that is rounded, carried to the
output by the Jacobian. A tensor is rounded when the op that makes it is FP16, or the op that reads
it, or one between them that only moves values; then it is rounded once, whichever of them it is.
So each reading of a tensor is a *source* with a set of ops that trigger it, and constants are
sources triggered by their op alone. :mod:`mpsearch.search.rounding_hooks` finds them and their
effects.

The model only *proposes*: an order in which to cast ops, and which exchanges to try. Only true
evaluations decide.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

#: What an overflow weighs: more than any finite effect, and still comparable.
OVERFLOW = 1e30


@dataclass(slots=True)
class RoundingModel:
    """Sources of rounding error: the ops that trigger each, and its squared effect.

    Effects are relative to the norm of the output, so their sum is comparable to a squared
    relative L2 error.
    """

    triggers: list[frozenset[int]] = field(default_factory=list)
    effects: list[float] = field(default_factory=list)
    _by_op: dict[int, list[int]] = field(default_factory=dict)

    def add(self, trigger: frozenset[int], effect: float) -> None:
        """Add a source."""
        if not trigger or effect <= 0:
            return
        for op in trigger:
            self._by_op.setdefault(op, []).append(len(self.triggers))
        self.triggers.append(trigger)
        self.effects.append(effect)

    def harm(self, ops: Collection[int], fp16: Collection[int]) -> float:
        """The squared error that casting ``ops`` adds when ``fp16`` are cast already."""
        seen: set[int] = set()
        total = 0.0
        for op in ops:
            for source in self._by_op.get(op, ()):
                if source not in seen and self.triggers[source].isdisjoint(fp16):
                    seen.add(source)
                    total += self.effects[source]
        return total

    def total(self, fp16: Collection[int]) -> float:
        """The squared error when ``fp16`` are cast; sources that overflow are left out."""
        cast = frozenset(fp16)
        pairs = zip(self.triggers, self.effects, strict=True)
        return sum(e for trigger, e in pairs if e < OVERFLOW and not trigger.isdisjoint(cast))

    def relief(self, ops: Collection[int], fp16: Collection[int]) -> float:
        """The squared error that goes when ``ops``, which are in ``fp16``, become FP32."""
        others = set(fp16).difference(ops)
        return self.harm(ops, others)

    def keep_order(
        self,
        units: Sequence[Collection[int]],
        cost: Sequence[float],
        fp16: Collection[int] = (),
        steps: int = 64,
    ) -> list[int]:
        """Units in the order in which to keep them FP32, the most worthwhile first.

        A source is silenced only if all ops that trigger it are FP32, so which set to keep is a
        project selection problem: a minimum cut gives the set with the largest sum of silenced
        effects less ``price`` times its cost, exactly (Picard 1976). As the price falls these
        sets grow, one inside the next (Gallo, Grigoriadis and Tarjan 1989); the order is that of
        their growth, and within one step that of the least harm done by casting.
        """
        owner = {op: i for i, unit in enumerate(units) for op in unit}
        projects = []
        for trigger, effect in zip(self.triggers, self.effects, strict=True):
            if trigger.isdisjoint(fp16):
                projects.append((effect, sorted({owner[op] for op in trigger if op in owner})))
        projects = [(effect, needs) for effect, needs in projects if needs]
        order: list[int] = []
        if projects:
            finite = [effect for effect, _ in projects if effect < OVERFLOW]
            high = max(finite, default=1.0)
            low = min(finite, default=1.0)
            prices = [math.inf, *np.geomspace(high * 2, low / 4, steps)]
            for price in prices:
                chosen = _closure(projects, cost, price)
                fresh = chosen.difference(order)
                order.extend(self._ranked(fresh, order, units, fp16))
        rest = set(range(len(units))).difference(order)
        return order + self._ranked(rest, order, units, fp16)

    def _ranked(
        self,
        fresh: set[int],
        before: Sequence[int],
        units: Sequence[Collection[int]],
        fp16: Collection[int],
    ) -> list[int]:
        """``fresh`` with what would be cast first at the end, given that ``before`` is kept."""
        if len(fresh) <= 1:
            return list(fresh)
        kept = {op for i in (*before, *fresh) for op in units[i]}
        cast = {op for unit in units for op in unit}.difference(kept) | set(fp16)
        out: list[int] = []
        remaining = set(fresh)
        while remaining:
            least = min(remaining, key=lambda i: (self.harm(units[i], cast), -i))
            remaining.discard(least)
            cast.update(units[least])
            out.append(least)
        return out[::-1]


def _closure(
    projects: Sequence[tuple[float, Sequence[int]]], cost: Sequence[float], price: float
) -> set[int]:
    """The units that maximise the effects silenced less ``price`` times the cost of the units."""
    unit = 1000  # maximum_flow counts in integers: a cost of 1 is this many
    top = 1 << 30
    n = len(projects)
    sink = n + len(cost) + 1
    rows, columns, capacities = [], [], []

    def edge(a: int, b: int, capacity: float) -> None:
        rows.append(a)
        columns.append(b)
        capacities.append(int(min(max(capacity, 0), top)))

    for j, (effect, needs) in enumerate(projects, start=1):
        if effect >= OVERFLOW:
            value = 1e6 * unit
        else:
            value = 0.0 if math.isinf(price) else min(effect / price * unit, 1e6 * unit)
        edge(0, j, value)
        for i in needs:
            edge(j, n + 1 + i, top)
    for i, c in enumerate(cost):
        edge(n + 1 + i, sink, c * unit)
    graph = csr_array((capacities, (rows, columns)), shape=(sink + 1, sink + 1), dtype=np.int32)
    residual = graph - maximum_flow(graph, 0, sink).flow
    residual.data[residual.data < 0] = 0
    residual.eliminate_zeros()
    reached = breadth_first_order(residual, 0, return_predecessors=False)
    return {int(v) - n - 1 for v in reached if n < v < sink}
