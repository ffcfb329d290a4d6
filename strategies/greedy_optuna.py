"""Strategy ``greedy-optuna``, the default: rank, cast greedily, refine with Optuna, prune.

A sequence of named passes over one ``problem.try_``, each with one guarantee:

``cast``
    Along a ranking of the units, a boundary: those beyond it are FP16, and the budget is met.
``foresee``
    The same where the time is limited, from the boundary that the model of rounding predicts.
``prune``
    Each unit was tried in FP16, as far as half of the trials left allow; after the last pass, if
    the trials lasted, no single one can be cast within the budget.
``bound``
    Disjoint sets of units that each break the budget alone have been found; where there are as
    many as units kept, and each breaks it by far, no search for fewer is needed.
``rank``
    Every unit has been FP16 alone, the rest FP32, where there are few enough of them. (From the
    other side, one unit FP32 and the rest FP16, an overflow that spans several ops shows nothing
    when one of them is fixed.)
``refine``
    Optuna, with a sampler that learns from the outputs of everything tried so far
    (:class:`mpsearch.search.sampler.ResponseSampler`), made exchanges as long as they led to
    smaller sets.
``exchange``
    Putting in one or two of the units that lower the true loss most does not let more others out.
``exhaust``
    Where few sets are one smaller, all of them have been tried; then those that are two smaller,
    as far as the trials allowed.
``settle``
    No unit can be swapped for its neighbor to save a cast, as far as the trials allowed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mpsearch.search.bound import lower_bound
from mpsearch.search.problem import Problem
from mpsearch.search.question import Kept
from mpsearch.search.sampler import ResponseSampler

#: A squared effect from which on casting is hopeless: an overflow.
_HOPELESS = 1e20


@dataclass(frozen=True)
class GreedyOptuna:
    """The strategy; its passes and constants were weighed by ``benchmarks/ablation.py``.

    Attributes
    ----------
    rank_share
        Share of the trials left that ranking one by one may take; 0 leaves it out.
    prune_share
        Share of the trials left that one pruning may take.
    bound_per_unit, bound_trials
        Trials for the lower bound before it is given up as a way to stop: per unit kept, and
        besides.
    refine
        The pass that makes exchanges; None leaves it out.
    misses
        Exchanges in a row that may fail before refining ends.
    changing
        How many of the units kept, and of the others, exchanges are made from.
    entering
        Units outside the set that are tried in it before others are cast in exchange; 0 leaves
        the pass out.
    exhaust
        Whether all smaller sets are tried where they are few.
    settle_trials
        Swaps with neighbors that are tried at the end to save casts.
    last_prune
        Whether the result is pruned once more, until no unit can be cast.
    """

    rank_share: float = 0.25
    prune_share: float = 0.5
    bound_per_unit: float = 1.5
    bound_trials: int = 12
    refine: Callable[[GreedyOptuna, Problem, Kept], Kept] | None = None
    misses: int = 48
    changing: int = 24
    entering: int = 8
    exhaust: bool = True
    settle_trials: int = 20
    last_prune: bool = True

    def __call__(self, problem: Problem) -> None:
        """Run the passes; see the module's docstring."""
        ranking = problem.keep_order()
        # With little time the model's own boundary comes first, so that there is an answer early.
        cast = _foresee if problem.ending.limited else _cast
        kept = self.prune(problem, cast(problem, ranking))
        if len(problem.everything) <= problem.remaining * self.rank_share and not self._reached(
            problem, kept
        ):
            other = self.prune(problem, _cast(problem, _rank(problem)))
            kept = min(kept, other, key=problem.question.rank)
        if not self._reached(problem, kept):
            kept = self._refine(problem, kept)
            kept = self._exchange(problem, self.prune(problem, kept))
            if self.exhaust:
                _exhaust(problem, kept)
        self._settle(problem)
        if self.last_prune and problem.best is not None:
            self.prune(problem, problem.best.kept, again=True)

    def _reached(self, problem: Problem, kept: Kept) -> bool:
        """Whether the lower bound shows that there is nothing smaller to find."""
        if problem.question.objective != "ops":
            return False
        trials = int(self.bound_per_unit * len(kept)) + self.bound_trials
        if trials > problem.remaining / 2:
            return False  # too many ops are kept for a proof to pay
        bound = lower_bound(problem, len(kept), trials, clear=True)
        return bound.price == problem.question.price(kept) and not bound.marginal

    def prune(self, problem: Problem, kept: Kept, again: bool = False) -> Kept:
        """Cast units, those of least predicted harm first, more at once while that goes well.

        A unit that could not be cast seldom can be once others are; ``again`` goes over the set
        until that is known to be so, however many trials it takes.
        """
        question = problem.question
        least = max(max(question.cost, default=0.0), 1.0) * 1e-9
        spare = 0 if again else int(problem.remaining * (1 - self.prune_share))
        changed = True
        while changed:
            changed = False
            harm = {u: problem.harm(u, kept) / max(question.cost[u], least) for u in kept}
            order = sorted(kept, key=lambda u: (harm[u], u))
            place, step = 0, 1
            while place < len(order) and problem.remaining > spare:
                smaller = kept.difference(order[place : place + step])
                cheaper = question.rank(smaller) < question.rank(kept)
                if cheaper and problem.try_(smaller, "prune").met:
                    kept, changed = smaller, again
                    place, step = place + step, 2 * step
                elif step > 1:
                    step = 1
                else:
                    place += 1
        return kept

    def _refine(self, problem: Problem, kept: Kept) -> Kept:
        return kept if self.refine is None else self.refine(self, problem, kept)

    def _exchange(self, problem: Problem, kept: Kept) -> Kept:
        """Put units in and cast all that then can be, as long as more come out than went in."""
        improved = self.entering > 0
        while improved and len(kept) > 1:
            improved = False
            for grown in self._grown(problem, kept):
                smaller = self.prune(problem, grown)
                if problem.question.price(smaller) < problem.question.price(kept):
                    kept, improved = self._refine(problem, smaller), True
                    break
        return kept

    def _grown(self, problem: Problem, kept: Kept) -> Iterator[Kept]:
        """The set with one unit more, or two, those first that leave the smallest loss."""
        outside = sorted(problem.everything - kept, key=lambda u: (-problem.relief(u, kept), u))
        entering = outside[: self.entering]
        trials = problem.ask([kept | {u} for u in entering], "exchange", exact=True)
        loss = {u: trial.loss for u, trial in zip(entering, trials, strict=True)}
        best = sorted(entering, key=lambda u: (loss[u], u))
        for first in best[:2]:
            yield kept | {first}
        for pair in itertools.combinations(best[:4], 2):
            yield kept.union(pair)

    def _settle(self, problem: Problem) -> None:
        """Swap units for their neighbors where that leaves as many and saves casts."""
        question = problem.question
        for _ in range(self.settle_trials):
            best = problem.best
            if best is None or problem.remaining <= 0:
                return
            swaps = {
                best.kept - {unit} | {other}
                for unit in best.kept
                for other in question.neighbors(unit) - best.kept
            }
            better = question.rank(best.kept)
            fresh = [
                s for s in swaps if problem.record.known(s) is None and question.rank(s) < better
            ]
            if not fresh:
                return
            problem.try_(min(fresh, key=lambda s: (question.rank(s), sorted(s))), "settle")


def refine(strategy: GreedyOptuna, problem: Problem, kept: Kept) -> Kept:
    """Exchange by what the trials so far say of the outputs' errors, until that misleads."""
    sampler, misses = ResponseSampler(problem), 0
    while misses < strategy.misses and len(kept) > 1:
        sampler.around(kept, in_doubt(problem, kept, strategy.changing))
        trial = problem.sample(sampler, "refine", kept)
        if trial is None:
            break
        kept, misses = (trial.kept, 0) if trial.met else (kept, misses + 1)
    return kept


def in_doubt(problem: Problem, kept: Kept, count: int) -> list[int]:
    """The units whose place is in doubt: those that harm least, and those that relieve most."""
    harm = {u: problem.harm(u, kept) for u in kept}
    relief = {u: problem.relief(u, kept) for u in problem.everything - kept}
    inside = sorted((u for u in harm if harm[u] < _HOPELESS), key=lambda u: (harm[u], u))
    outside = sorted((u for u in relief if relief[u] > 0), key=lambda u: (-relief[u], u))
    return inside[:count] + outside[:count]


def find_integer(holds: Callable[[int], bool], high: int) -> int:
    """The largest n in 0..high for which ``holds(n)``, given that it holds up to some n only.

    Exponential probe, then bisection (Hypothesis, ``find_integer``).
    """
    low, step = 0, 1
    while low + step <= high and holds(low + step):
        low += step
        step *= 2
    bad = min(low + step, high + 1)
    while bad - low > 1:
        middle = (low + bad) // 2
        if holds(middle):
            low = middle
        else:
            bad = middle
    return low


def _rank(problem: Problem) -> list[int]:
    """The units by what each does alone in FP16, the worst first."""
    everything = problem.everything
    trials = problem.ask([everything - {u} for u in everything], "rank", exact=True)
    loss = {next(iter(everything - t.kept)): t.loss for t in trials}
    place = {u: i for i, u in enumerate(problem.keep_order())}
    return sorted(loss, key=lambda u: (-loss[u], place[u]))


def _cast(problem: Problem, ranking: Sequence[int]) -> Kept:
    """The shortest head of a ranking that meets the budget, by bisection."""
    count = len(ranking)
    cast = find_integer(lambda n: problem.try_(ranking[: count - n], "cast").met, count)
    return frozenset(ranking[: count - cast])


def _foresee(problem: Problem, ranking: Sequence[int]) -> Kept:
    """The shortest head of a ranking that meets the budget, sought from where the model sees it."""
    broken, head = -1, problem.guide.boundary(problem.question, ranking)
    while head < len(ranking) and not problem.try_(ranking[:head], "foresee").met:
        broken, head = head, min(len(ranking), max(head + 1, 3 * head // 2))
    while head - broken > 1:
        middle = (head + broken) // 2
        if problem.try_(ranking[:middle], "foresee").met:
            head = middle
        else:
            broken = middle
    return frozenset(ranking[:head])


def _exhaust(problem: Problem, kept: Kept) -> None:
    """Try all sets that are one smaller, then two, as long as the trials last."""
    every = sorted(problem.everything, key=lambda u: (-problem.relief(u, kept), u))
    for size in range(len(kept) - 1, 0, -1):
        if math.comb(len(every), size) > problem.remaining:
            return
        for chosen in itertools.combinations(every, size):
            if problem.try_(chosen, "exhaust").met:
                break


search = GreedyOptuna(refine=refine)
