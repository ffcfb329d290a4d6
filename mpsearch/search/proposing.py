"""The cheapest set that no conflict rules out and whose predicted rounding is within a cut.

An integer program (solved by HiGHS, through scipy) with a variable for each unit, 1 for FP32:

* Each conflict has a unit in FP32: a hitting set. Searching by proposing hitting sets and learning
  what they miss is the implicit hitting set algorithm (Moreno-Centeno and Karp, 2013; MaxHS: Davies
  and Bacchus, 2011).
* The cut: each source of rounding (:mod:`mpsearch.search.rounding`) has a variable that is 0 only
  if all the units that trigger it are FP32; their squared effects add up to the cut at most.
* For ``casts``, each tensor has a variable for a cast, which is 1 where a reader and its producer
  differ.

What a set costs comes first, then how many ops it has, then how much rounding it leaves.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from ..stdout import STDOUT, nothing_printed
from .problem import Problem, UnitSet
from .rounding import OVERFLOW, RoundingModel

#: What the number of ops, and the rounding left, weigh beside the price of a mean unit, in all.
_OPS, _ROUNDING = 1e-2, 1e-4
#: Sources that are less than this share of a cut together are left out of it.
_LEAST = 1e-2
#: Branches of the integer program; where more are needed the best set so far is taken. A limit in
#: seconds would make results depend on the machine.
_NODES = 400
_GAP = 1e-6


def propose(
    problem: Problem,
    conflicts: Iterable[Collection[int]],
    model: RoundingModel | None = None,
    cut: float = math.inf,
    forced: Collection[int] = (),
) -> UnitSet | None:
    """The set; None where there is none, or the program was given up.

    Parameters
    ----------
    conflicts
        Sets of units of which one each is FP32.
    model, cut
        The model of rounding, and the largest squared relative error that it may predict.
    forced
        Units that are FP32.
    """
    program = _Program(problem)
    program.lower[list(forced)] = 1
    for units in conflicts:
        program.require([(unit, 1.0) for unit in units], 1.0)
    if model is not None and cut < math.inf and not program.cut(model, cut):
        return None
    if problem.objective == "casts":
        program.count_casts()
    return program.solved(model)


@dataclass
class _Program:
    """Rows of an integer program; the first variables are the units."""

    problem: Problem
    lower: np.ndarray = field(init=False)
    weights: list[float] = field(init=False)
    entries: list[tuple[int, int, float]] = field(default_factory=list)  # row, variable, factor
    least: list[float] = field(default_factory=list)  # of each row

    def __post_init__(self) -> None:
        problem = self.problem
        count = len(problem.units)
        self.lower = np.zeros(count)
        priced = [cost for cost in problem.cost if cost > 0]
        mean = sum(priced) / len(priced) if priced else 1.0
        ops = [len(unit.ops) for unit in problem.units]
        share = _OPS / max(sum(ops), 1)
        pairs = zip(problem.cost, ops, strict=True)
        self.weights = [cost / mean + share * number for cost, number in pairs]

    def require(self, terms: Sequence[tuple[int, float]], least: float) -> None:
        """The sum of factors times variables is ``least`` or more."""
        row = len(self.least)
        self.entries += [(row, variable, factor) for variable, factor in terms]
        self.least.append(least)

    def variable(self, weight: float = 0.0) -> int:
        """One more variable, from 0 to 1."""
        self.weights.append(weight)
        return len(self.weights) - 1

    def cut(self, model: RoundingModel, cut: float) -> bool:
        """Keep the predicted squared error within a cut; False where nothing can."""
        owner = {op: u for u, unit in enumerate(self.problem.units) for op in unit.ops}
        fp16, always = self.problem.pinned_fp16, self.problem.always
        sources: dict[frozenset[int], float] = {}
        for trigger, effect in zip(model.triggers, model.effects, strict=True):
            if effect >= OVERFLOW or trigger <= always:
                continue
            if not trigger.isdisjoint(fp16):
                cut -= effect
                continue
            units = frozenset(owner[op] for op in trigger if op in owner)
            sources[units] = sources.get(units, 0.0) + effect
        if cut <= 0:
            return False
        dropped = 0.0
        terms: list[tuple[int, float]] = []
        for units, effect in sorted(sources.items(), key=lambda s: (s[1], sorted(s[0]))):
            if effect > cut:
                self.lower[list(units)] = 1
            elif dropped + effect <= _LEAST * cut:
                dropped += effect
            else:
                rounds = self.variable()
                terms.append((rounds, -effect / cut))
                for unit in units:
                    self.require([(rounds, 1.0), (unit, 1.0)], 1.0)
        self.require(terms, dropped / cut - 1.0)
        return True

    def count_casts(self) -> None:
        """Price each tensor that is read in another precision than it is made in."""
        problem = self.problem
        assert problem.casts is not None
        owner = {op: u for u, unit in enumerate(problem.units) for op in unit.ops}

        def terms(op: int, factor: float) -> tuple[list[tuple[int, float]], float]:
            if op in owner:
                return [(owner[op], factor)], 0.0
            return [], factor * float(op < 0 or op in problem.always)

        for producer, readers in problem.casts.tensors():
            cast = self.variable(1.0)
            for reader in readers:
                for sign in (1.0, -1.0):  # cast >= producer - reader, and the reverse
                    made, one = terms(producer, -sign)
                    read, other = terms(reader, sign)
                    self.require([(cast, 1.0), *made, *read], -one - other)

    def solved(self, model: RoundingModel | None) -> UnitSet | None:
        count, variables = len(self.problem.units), len(self.weights)
        if not self.least:
            return frozenset(int(u) for u in np.flatnonzero(self.lower))
        weights = np.array(self.weights)
        if model is not None:
            harm = np.array([model.harm(unit.ops, ()) for unit in self.problem.units])
            place = np.argsort(np.argsort(-harm, kind="stable"), kind="stable")
            weights[:count] += _ROUNDING * place / max(count, 1) ** 2
        rows, columns, factors = zip(*self.entries, strict=True) if self.entries else ((), (), ())
        matrix = csr_array((factors, (rows, columns)), shape=(len(self.least), variables))
        lower = np.concatenate([self.lower, np.zeros(variables - count)])
        whole = np.concatenate([np.ones(count), np.zeros(variables - count)])
        with nothing_printed(STDOUT):  # HiGHS says what it does there
            found = milp(
                weights,
                constraints=LinearConstraint(matrix, lb=np.array(self.least)),
                integrality=whole,
                bounds=Bounds(lower, 1),
                options={"node_limit": _NODES, "mip_rel_gap": _GAP},
            )
        if found.x is None:
            return None
        return frozenset(int(u) for u in np.flatnonzero(found.x[:count] > 0.5))
