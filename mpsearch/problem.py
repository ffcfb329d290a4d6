"""What a strategy is given and what it must leave behind.

A strategy sees *units*, things that are FP32 or FP16 as a whole: single ops, or the ops of one
layer. It asks :meth:`Problem.try_` about sets of units to keep in FP32 and may stop whenever it
likes: the best set seen so far is the result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from .bound import disjoint_cores, monotone
from .evaluator import Evaluator
from .program import CandidateOp
from .sensitivity import RoundingModel


@dataclass(frozen=True, slots=True)
class Unit:
    """Candidate ops that are decided together."""

    name: str
    ops: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """One evaluated set.

    Attributes
    ----------
    kept
        The units kept in FP32.
    loss
        Its loss (smaller is better); a lower bound where ``exact`` is False.
    met
        Whether the loss is within the budget.
    asked_by
        The pass of the strategy that asked.
    executions, seconds
        What it cost; both 0 where the answer was remembered.
    """

    kept: frozenset[int]
    loss: float
    met: bool
    exact: bool
    asked_by: str
    executions: int = 0
    seconds: float = 0.0


class Stop(Exception):  # noqa: N818 - a signal, as StopIteration is
    """The trials or the time are used up, or the user interrupted. Strategies let it pass."""


class Strategy(Protocol):
    """A search strategy, found through the entry-point group ``mpsearch.strategies``."""

    def __call__(self, problem: Problem) -> None:
        """Search; every set that was tried is in ``problem.history``."""


class Problem:
    """The search problem.

    Attributes
    ----------
    units
        What can be decided, in execution order.
    ops
        All candidate ops, in the order of the precision vector.
    cost
        Per unit, what keeping it in FP32 costs.
    budget
        The largest loss allowed.
    seed
        For everything random.
    trials
        How many evaluations there may be.
    history
        Every distinct trial, in order.
    best
        The cheapest trial that met the budget; of equals, the one with the smallest loss.
    study
        Optuna's study, where the strategy ran one.
    user_budget
        The budget as given, before :meth:`tighten`.
    contradicted
        Whether keeping more in FP32 was seen to hurt, so that there is no lower bound.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        ops: Sequence[CandidateOp],
        budget: float,
        evaluator: Evaluator,
        *,
        seed: int = 0,
        trials: int = 300,
        deadline: float = math.inf,
        always: frozenset[int] = frozenset(),
        watch: Callable[[Trial, Problem], None] | None = None,
    ) -> None:
        self.units = units
        self.ops = ops
        self.budget = budget
        self.evaluator = evaluator
        self.seed = seed
        self.trials = trials
        self.deadline = deadline
        self.cost = [float(len(u.ops)) for u in units]
        self.history: list[Trial] = []
        self.best: Trial | None = None
        self.study: Any = None
        self.user_budget = budget
        self.contradicted = False
        self._always = always
        self._watch = watch
        self._known: dict[frozenset[int], Trial] = {}
        self._rejected: set[frozenset[int]] = set()
        self._reserve = 0
        self._free = 0  # trials that no strategy asked for
        self._model: RoundingModel | None = None
        self._ends: tuple[float, float] | None = None

    @property
    def everything(self) -> frozenset[int]:
        """All units."""
        return frozenset(range(len(self.units)))

    @property
    def pinned(self) -> bool:
        """Whether some candidate ops are decided already."""
        return sum(len(u.ops) for u in self.units) < len(self.ops)

    @property
    def remaining(self) -> int:
        """Trials left."""
        return self.trials - self._reserve - len(self.history) + self._free

    def price(self, kept: Iterable[int]) -> float:
        """What keeping these units costs."""
        return sum(self.cost[i] for i in kept)

    def known(self, kept: Iterable[int]) -> Trial | None:
        """The trial of a set, if there was one."""
        return self._known.get(frozenset(kept))

    def ends(self) -> tuple[float, float]:
        """The losses of all-FP32 (the floor) and all-FP16, pins left aside."""
        if self._ends is None:
            count = len(self.ops)
            floor = self.evaluator.evaluate((True,) * count).loss
            self._ends = floor, self.evaluator.evaluate((False,) * count).loss
        return self._ends

    def admit(self, kept: Iterable[int]) -> Trial:
        """Evaluate a set whatever the limits, outside the trials given to the strategy."""
        key = frozenset(kept)
        known = self._known.get(key)
        if known is not None and known.exact:
            return known
        self._free += 1
        return self._evaluate(key, "ends", exact=True)

    def try_(self, kept: Iterable[int], by: str, exact: bool = False) -> Trial:
        """Evaluate the set of units kept in FP32.

        ``exact`` asks for the loss itself also where it is above the budget; otherwise
        evaluation stops once the budget is broken. A set tried before costs nothing.

        Raises
        ------
        Stop
            If trials or time are used up.
        """
        key = frozenset(kept)
        known = self._known.get(key)
        if known is not None and (known.exact or not exact):
            return known
        if self.remaining <= 0 or time.monotonic() > self.deadline:
            raise Stop
        return self._evaluate(key, by, exact)

    def _evaluate(self, key: frozenset[int], by: str, exact: bool) -> Trial:
        limit = math.inf if exact else self.budget
        measured = self.evaluator.evaluate(self.vector(key), limit)
        met = measured.exact and measured.loss <= self.budget
        trial = Trial(
            key, measured.loss, met, measured.exact, by, measured.executions, measured.seconds
        )
        self._known[key] = trial
        self.history.append(trial)
        self._consider(trial)
        if self._watch is not None:
            self._watch(trial, self)
        return trial

    def try_many(self, sets: Iterable[Iterable[int]], by: str, exact: bool = False) -> list[Trial]:
        """Evaluate several sets whose order does not matter."""
        return [self.try_(kept, by, exact) for kept in sets]

    def reserve(self, share: float) -> None:
        """Keep a share of the trials for after :meth:`tighten`."""
        self._reserve = int(self.trials * share)

    def extend(self, trials: int) -> None:
        """Allow so many trials more, whatever was reserved."""
        self.trials = len(self.history) - self._free + trials
        self._reserve = 0

    def tighten(self, budget: float) -> None:
        """Ask for a smaller loss from now on; earlier trials are judged again.

        Half of what was reserved becomes available.
        """
        self.budget = budget
        self._reserve //= 2
        self.best = None
        self.history = [replace(t, met=t.exact and t.loss <= budget) for t in self.history]
        self._known = {t.kept: t for t in self.history}
        for trial in self.history:
            self._consider(trial)

    @property
    def model(self) -> RoundingModel:
        """The first-order model of rounding, built when first asked for."""
        if self._model is None:
            self._model = self.evaluator.rounding_model(self.seed)
        return self._model

    def keep_order(self) -> list[int]:
        """Units in the order in which the model would keep them FP32, the worst first."""
        return self.model.keep_order([u.ops for u in self.units], self.cost, self._pinned_fp16)

    def harm(self, unit: int, kept: Iterable[int]) -> float:
        """The model's squared error for casting a unit of ``kept`` as well."""
        return self.model.harm(self.units[unit].ops, self._fp16(kept))

    def relief(self, unit: int, kept: Iterable[int]) -> float:
        """The model's squared error that goes when a unit outside ``kept`` joins it."""
        return self.model.relief(self.units[unit].ops, self._fp16(kept))

    def _fp16(self, kept: Iterable[int]) -> set[int]:
        return {i for i, fp32 in enumerate(self.vector(kept)) if not fp32}

    @property
    def _pinned_fp16(self) -> set[int]:
        free = {i for u in self.units for i in u.ops}
        return set(range(len(self.ops))) - free - self._always

    def lower_bound(self) -> int | None:
        """At least so much must be paid for FP32, under the assumption of :mod:`mpsearch.bound`.

        Evaluates the sets that prove it; those count as trials.

        Returns
        -------
        int or None
            None where the trials contradict the assumption.
        """
        everything = self.everything

        def breaks(units: Sequence[int]) -> bool:
            return not self.try_(everything.difference(units), "bound").met

        cores = disjoint_cores(self.keep_order(), breaks)
        bound = sum(min(self.cost[u] for u in core) for core in cores)
        met = [t.kept for t in self.history if t.met]
        broken = [t.kept for t in self.history if not t.met]
        self.contradicted = not monotone(met, broken)
        return None if self.contradicted else int(bound)

    def reject(self, kept: Iterable[int]) -> None:
        """Never take this set as the best, whatever its loss."""
        self._rejected.add(frozenset(kept))

    def vector(self, kept: Iterable[int]) -> tuple[bool, ...]:
        """The precision vector (True = FP32) of a set of units, pinned ops included."""
        fp32 = set(self._always)
        for unit in kept:
            fp32.update(self.units[unit].ops)
        return tuple(i in fp32 for i in range(len(self.ops)))

    def _consider(self, trial: Trial) -> None:
        if not trial.met or trial.kept in self._rejected:
            return
        rank = (self.price(trial.kept), trial.loss)
        if self.best is None or rank < (self.price(self.best.kept), self.best.loss):
            self.best = trial
