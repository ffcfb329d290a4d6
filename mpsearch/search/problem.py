"""What a strategy is given and what it must leave behind.

A strategy sees *units*, things that are FP32 or FP16 as a whole: single ops, or the ops of one
layer. It asks :meth:`Problem.try_` about sets of units to keep in FP32 and may stop whenever it
likes: the best set seen so far is the result.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ..cache import ByteCache
from ..ending import Ending, Stop
from ..evaluation.evaluator import Evaluator
from ..program.lowering import CandidateOp
from .bound import disjoint_cores, monotone
from .cost import Casts, op_cost
from .response import Response, Sketch
from .rounding import RoundingModel, rounding_model_of

#: What the sketched errors of trials may take: a proof by exhaustion makes 100,000 of them.
_ERROR_BYTES = 64 << 20


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
    price
        What keeping these units costs, in the problem's objective.
    fp32_ops
        How many ops are FP32, pinned ones included.
    overflows
        Whether the set was refused because an op left in FP16 overflows.
    executions, seconds
        What evaluating it cost.
    """

    kept: frozenset[int]
    loss: float
    met: bool
    exact: bool
    asked_by: str
    price: float = 0.0
    overflows: bool = False
    executions: int = 0
    seconds: float = 0.0
    fp32_ops: int = 0


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
    objective
        What is minimised, one of :data:`mpsearch.search.cost.OBJECTIVES`.
    cost
        Per unit, what keeping it in FP32 costs by itself.
    budget
        The largest loss allowed.
    seed
        For everything random.
    trials
        How many evaluations there may be.
    ending
        When the run ends: its deadline, and the user's signals.
    history
        Every distinct trial, in order.
    best
        The cheapest trial that met the budget; of equals, the one with fewer ops, then with fewer
        casts, then with the smaller loss.
    study
        Optuna's study, where the strategy ran one.
    storage
        Where Optuna is to keep it, as a URL; None for in memory.
    user_budget
        The budget as given, before :meth:`tighten`.
    proven
        Whether every cheaper set was tried and broke the budget.
    marginal
        Whether the last lower bound rests on sets that break the budget by less than a factor of
        two (6 dB), where rounding errors that cancel could make a smaller set meet it.
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
        ending: Ending | None = None,
        always: frozenset[int] = frozenset(),
        objective: str = "ops",
        casts: Casts | None = None,
        forbid_overflow: bool = False,
        storage: str | None = None,
        watch: Callable[[Trial, Problem], None] | None = None,
    ) -> None:
        self.units = units
        self.ops = ops
        self.budget = budget
        self.evaluator = evaluator
        self.seed = seed
        self.trials = trials
        self.ending = ending or Ending()
        self.objective = objective
        self.cost = [sum(op_cost(ops[i], objective) for i in u.ops) for u in units]
        self.history: list[Trial] = []
        self.best: Trial | None = None
        self.study: Any = None
        self.storage = storage
        self.user_budget = budget
        self.contradicted = False
        self.marginal = False
        self.proven = False
        self._always = always
        self._casts = casts
        self._forbid_overflow = forbid_overflow
        self._watch = watch
        self._known: dict[frozenset[int], Trial] = {}
        self._rejected: set[frozenset[int]] = set()
        self._reserve = 0
        self._ranks: dict[frozenset[int], tuple[float, float, int]] = {}
        self._model: RoundingModel | None = None
        self._adjacent: dict[int, set[int]] | None = None
        self._sketch = Sketch(evaluator.references, seed)
        self._errors: ByteCache[dict[tuple[int, int], np.ndarray]] = ByteCache(
            _ERROR_BYTES, lambda found: sum(error.nbytes for error in found.values())
        )
        self._floor: float | None = None
        self._ends: tuple[float, float | None] | None = None

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
        return self.trials - self._reserve - len(self.history)

    def price(self, kept: Iterable[int]) -> float:
        """What keeping these units costs in the problem's objective."""
        return self.rank(kept)[0]

    def rank(self, kept: Iterable[int]) -> tuple[float, float, int]:
        """How good a set is that meets the budget, smaller being better: price, ops, casts."""
        key = frozenset(kept)
        found = self._ranks.get(key)
        if found is None:
            casts = 0 if self._casts is None else self._casts.count(self.vector(key))
            price = sum(self.cost[i] for i in key) + (casts if self.objective == "casts" else 0)
            found = price, float(sum(len(self.units[i].ops) for i in key)), casts
            self._ranks[key] = found
        return found

    def neighbours(self, unit: int) -> set[int]:
        """The units that a unit hands values to or takes them from."""
        if self._adjacent is None:
            ops = {} if self._casts is None else self._casts.neighbours()
            owner = {i: u for u, unit_ in enumerate(self.units) for i in unit_.ops}
            self._adjacent = {
                u: {owner[j] for i in unit_.ops for j in ops.get(i, ()) if j in owner} - {u}
                for u, unit_ in enumerate(self.units)
            }
        return self._adjacent[unit]

    def known(self, kept: Iterable[int]) -> Trial | None:
        """The trial of a set, if there was one."""
        return self._known.get(frozenset(kept))

    def ends(self) -> tuple[float, float | None]:
        """The losses of all-FP32 (the floor) and all-FP16, pins left aside.

        Where the time is used up, those of the samples that it was enough for; None for all-FP16
        where it was not enough for one.
        """
        if self._ends is None:
            fp16 = None
            floor = self.floor()
            with suppress(Stop):
                if not self._over():
                    vector = (False,) * len(self.ops)
                    fp16 = self.evaluator.evaluate(vector, enough=self._over).loss
            self._ends = floor, fp16
        return self._ends

    def floor(self) -> float:
        """The loss of all-FP32, of the samples that the time is enough for, one at least."""
        every = (True,) * len(self.ops)
        if self.vector(self.everything) == every:
            return self.admit(self.everything).loss
        if self._floor is None:  # some op may not be FP32
            self._floor = self.evaluator.evaluate(every, enough=self._over).loss
        return self._floor

    def admit(self, kept: Iterable[int]) -> Trial:
        """Evaluate one of the ends whatever the trials allow.

        Where the time is used up, on the samples that it was enough for; only all units together
        are then taken to meet the budget.
        """
        key = frozenset(kept)
        known = self._known.get(key)
        if known is not None and (known.exact or key == self.everything):
            return known
        return self._evaluate(key, "ends", exact=True, enough=self._over)

    def admit_fp16(self) -> bool:
        """Whether no unit at all needs FP32: that ends the search before it begins."""
        try:
            return self.admit(frozenset()).met
        except Stop:
            return False

    def _over(self) -> bool:
        return self.ending.over

    def prove(self, most: int) -> bool:
        """Try every cheaper set, the smallest first, whatever the trials allow.

        Returns
        -------
        bool
            Whether no cheaper set meets the budget; False as well where there are more than
            ``most`` of them, or the time is used up.
        """
        if self.best is None:
            return False
        top, count = len(self.units), 0
        # Where the price is not the number of units, a larger set can be the cheaper one.
        by_size = self.objective == "ops" and all(len(u.ops) == 1 for u in self.units)
        sizes = range(len(self.best.kept) if by_size else top + 1)
        if sum(math.comb(top, k) for k in sizes) > most:
            return False
        for k in sizes:
            for chosen in itertools.combinations(range(top), k):
                key = frozenset(chosen)
                if self.rank(key)[0] >= self.price(self.best.kept) or key in self._rejected:
                    continue
                count += 1
                if self.ending.over:
                    return False
                if key not in self._known:
                    self._evaluate(key, "prove", exact=False)
        return True

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
        self.ending.check()
        if self.remaining <= 0:
            raise Stop
        return self._evaluate(key, by, exact)

    def _evaluate(
        self,
        key: frozenset[int],
        by: str,
        exact: bool,
        enough: Callable[[], bool] | None = None,
    ) -> Trial:
        limit = math.inf if exact else self.budget
        errors = dict(self._errors.get(key) or {})

        def see(sample: int, profile: int, outputs: dict[str, Any]) -> None:
            error = self._sketch(sample, outputs)
            if error is not None:
                errors[sample, profile] = error

        remember = None
        if self.ending.limited:
            # Most sets fail on the first sample; what is tried next has few results in common with
            # all-FP32, and those on the other samples are seldom asked for again.
            remember = 0 if key == self.everything else 1
        measured = self.evaluator.evaluate(self.vector(key), limit, see, enough, remember)
        self._errors.put(key, errors)
        whole = measured.exact or (enough is not None and key == self.everything)
        met = whole and measured.loss <= self.budget
        overflows = met and self._forbid_overflow and bool(self.overflows(key))
        trial = Trial(
            key,
            measured.loss,
            met and not overflows,
            measured.exact,
            by,
            self.price(key),
            overflows,
            measured.executions,
            measured.seconds,
            sum(self.vector(key)),
        )
        self._known[key] = trial
        self.history.append(trial)
        self._consider(trial)
        if self._watch is not None:
            self._watch(trial, self)
        return trial

    def overflows(self, kept: Iterable[int]) -> list[CandidateOp]:
        """Ops left in FP16 that overflow where they would be finite in FP32."""
        return [self.ops[i] for i in sorted(self.evaluator.overflows(self.vector(kept)))]

    def try_many(self, sets: Iterable[Iterable[int]], by: str, exact: bool = False) -> list[Trial]:
        """Evaluate several sets whose order does not matter."""
        return [self.try_(kept, by, exact) for kept in sets]

    def reserve(self, share: float) -> None:
        """Keep a share of the trials for after :meth:`tighten`."""
        self._reserve = int(self.trials * share)

    def extend(self, trials: int) -> None:
        """Allow so many trials more, whatever was reserved."""
        self.trials = len(self.history) + trials
        self._reserve = 0

    def release(self) -> None:
        """Give back what was reserved and not used."""
        self._reserve = 0

    def tighten(self, budget: float) -> None:
        """Ask for a smaller loss from now on; earlier trials are judged again.

        Half of what was reserved becomes available.
        """
        self.budget = budget
        self._reserve //= 2
        self.proven = False
        self.best = None
        self.history = [
            replace(t, met=t.exact and t.loss <= budget and not t.overflows) for t in self.history
        ]
        self._known = {t.kept: t for t in self.history}
        for trial in self.history:
            self._consider(trial)

    def boundary(self, ranking: Sequence[int]) -> int:
        """How many units of a ranking's head the model would keep FP32 to meet the budget.

        A guess where the budget is no relative L2 error.
        """
        if self.budget <= 0:
            return len(ranking) // 4
        fp16 = set(self._pinned_fp16)
        total = self.model.harm(fp16, ())
        for place in range(len(ranking) - 1, -1, -1):
            ops = self.units[ranking[place]].ops
            total += self.model.harm(ops, fp16)
            fp16.update(ops)
            if total > self.budget**2:
                return place + 1
        return 0

    @property
    def known_model(self) -> bool:
        """Whether the model of rounding has been built."""
        return self._model is not None

    @property
    def model(self) -> RoundingModel:
        """The first-order model of rounding, built when first asked for."""
        if self._model is None:
            self._model = rounding_model_of(self.evaluator, self.seed)
        return self._model

    def keep_order(self) -> list[int]:
        """Units in the order in which the model would keep them FP32, the worst first."""
        mean = sum(self.cost) / max(sum(c > 0 for c in self.cost), 1) or 1.0
        cost = [c / mean for c in self.cost]
        return self.model.keep_order([u.ops for u in self.units], cost, self._pinned_fp16)

    def harm(self, unit: int, kept: Iterable[int]) -> float:
        """The model's squared error for casting a unit of ``kept`` as well."""
        return self.model.harm(self.units[unit].ops, self._fp16(kept))

    def relief(self, unit: int, kept: Iterable[int]) -> float:
        """The model's squared error that goes when a unit outside ``kept`` joins it."""
        return self.model.relief(self.units[unit].ops, self._fp16(kept))

    def response(self, middle: Iterable[int], units: Iterable[int]) -> Response:
        """What the trials say of sets that differ from ``middle``, one that met, in ``units``."""
        key = frozenset(middle)
        fp16 = self._fp16(key)
        errors = {
            kept: found for kept, found in self._errors.items() if isinstance(kept, frozenset)
        }
        effects = {}
        for unit in units:
            ops = self.units[unit].ops
            known = self.model.harm if unit in key else self.model.relief
            effects[unit] = known(ops, fp16)
        return Response(key, errors, effects)

    def _fp16(self, kept: Iterable[int]) -> set[int]:
        return {i for i, fp32 in enumerate(self.vector(kept)) if not fp32}

    @property
    def _pinned_fp16(self) -> set[int]:
        free = {i for u in self.units for i in u.ops}
        return set(range(len(self.ops))) - free - self._always

    def lower_bound(
        self, wanted: int | None = None, trials: int | None = None, clear: bool = False
    ) -> int | None:
        """At least so much must be paid for FP32, as :mod:`mpsearch.search.bound` assumes.

        Evaluates the sets that prove it; those count as trials, and where they run out, what was
        found so far holds. ``wanted`` ends it once so many disjoint sets cannot be had, ``trials``
        after so many new ones, ``clear`` at the first that breaks the budget only just.

        Returns
        -------
        int or None
            None where the trials contradict the assumption.
        """
        everything, before = self.everything, len(self.history)
        self.marginal = False

        def breaks(units: Sequence[int]) -> bool:
            if trials is not None and len(self.history) - before >= trials:
                return False
            if clear and self.marginal:
                return False
            try:
                trial = self.try_(everything.difference(units), "bound")
            except Stop:
                return False  # not shown to break, so no core
            self.marginal |= not trial.met and len(units) == 1 and not self._far_beyond(trial.loss)
            return not trial.met

        cores = disjoint_cores(self.keep_order(), breaks, wanted)
        proofs = [self.known(everything.difference(core)) for core in cores]
        self.marginal |= any(t is not None and not self._far_beyond(t.loss) for t in proofs)
        bound = sum(min(self.cost[u] for u in core) for core in cores)
        met = [t.kept for t in self.history if t.met]
        broken = [t.kept for t in self.history if not t.met]
        self.contradicted = not monotone(met, broken)
        return None if self.contradicted else int(bound)

    def _far_beyond(self, loss: float) -> bool:
        """Whether a loss is so far beyond the budget that no other rounding could undo it."""
        return loss > 2 * self.budget if self.budget > 0 else loss > self.budget + 6  # dB

    def accepted(self, budget: float) -> list[Trial]:
        """The trials that meet a budget and were not rejected."""
        return [
            t
            for t in self.history
            if t.exact and t.loss <= budget and not t.overflows and t.kept not in self._rejected
        ]

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
        rank = (*self.rank(trial.kept), trial.loss)
        if self.best is None or rank < (*self.rank(self.best.kept), self.best.loss):
            self.best = trial
