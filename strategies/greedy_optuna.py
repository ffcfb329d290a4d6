"""Strategy ``greedy-optuna``, the default: rank, cast greedily, refine with Optuna, prune.

A sequence of named passes over one ``problem.try_``, each with one guarantee:

``cast``
    Along a ranking of the units, a boundary: those beyond it are FP16, and the budget is met.
``foresee``
    The same where the time is limited, from the boundary that the model of rounding predicts.
``prune``
    Each unit was tried in FP16 once; after the last pass, if the trials lasted, no single one can
    be cast within the budget.
``bound``
    Disjoint sets of units that each break the budget alone have been found; where there are as
    many as units kept, and each breaks it by far, no search for fewer is needed.
``refine``
    Optuna, with a sampler that learns from the outputs of everything tried so far
    (:class:`mpsearch.search.sampler.ResponseSampler`), made exchanges as long as they led to
    smaller sets.

``benchmarks/ablation.py`` weighs the passes and the constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpsearch.search.bound import lower_bound
from mpsearch.search.exchanging import in_doubt
from mpsearch.search.problem import Problem
from mpsearch.search.pruning import prune
from mpsearch.search.question import Kept
from mpsearch.search.sampler import ResponseSampler

#: How many exchanges are expected to be tried next.
_AHEAD = 6

Refine = Callable[["GreedyOptuna", Problem, Kept], Kept]


@dataclass(frozen=True)
class GreedyOptuna:
    """The strategy.

    Attributes
    ----------
    refine
        The pass that makes exchanges; None leaves it out.
    bound_per_unit, bound_trials
        Trials for the lower bound before it is given up as a way to stop: per unit kept, and
        besides. A proof takes one for each unit, and some for sets of several.
    misses
        Exchanges in a row that may fail before refining ends.
    changing
        How many of the units kept, and of the others, exchanges are made from.
    last_prune
        Whether the result is pruned once more, until no single unit can be cast. It has not been
        seen to find anything, and is there for its guarantee.
    """

    refine: Refine | None = None
    bound_per_unit: float = 1.5
    bound_trials: int = 12
    misses: int = 48
    changing: int = 24
    last_prune: bool = True

    def __call__(self, problem: Problem) -> None:
        """Run the passes; see the module's docstring."""
        ranking = problem.keep_order()
        # With little time the model's own boundary comes first, so that there is an answer early.
        cast = _foresee if problem.ending.limited else _cast
        kept = prune(problem, cast(problem, ranking))
        if self.refine is not None and not self._reached(problem, kept):
            self.refine(self, problem, kept)
        if self.last_prune and problem.best is not None:
            prune(problem, problem.best.kept, again=True)

    def _reached(self, problem: Problem, kept: Kept) -> bool:
        """Whether the lower bound shows that there is nothing smaller to find."""
        if problem.question.objective != "ops":
            return False
        trials = int(self.bound_per_unit * len(kept)) + self.bound_trials
        if trials > problem.remaining / 2:
            return False  # too many ops are kept for a proof to pay
        bound = lower_bound(problem, len(kept), trials, clear=True)
        return bound.price == problem.question.price(kept) and not bound.marginal


def refine(strategy: GreedyOptuna, problem: Problem, kept: Kept) -> Kept:
    """Exchange by what the trials so far say of the outputs' errors, until that misleads."""
    sampler, misses = ResponseSampler(problem), 0
    while misses < strategy.misses and len(kept) > 1:
        inside, outside = in_doubt(problem, kept, strategy.changing)
        sampler.around(kept, inside + outside)
        problem.expect(lambda: sampler.likely(_AHEAD))
        trial = problem.sample(sampler, "refine", kept)
        if trial is None:
            break
        kept, misses = (trial.kept, 0) if trial.met else (kept, misses + 1)
    return kept


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


def _cast(problem: Problem, ranking: Sequence[int]) -> Kept:
    """The shortest head of a ranking that meets the budget, by bisection.

    Sought from none at all where all-FP16 all but meets the budget: few are needed then.
    """
    count, fp16 = len(ranking), problem.ends()[1]
    if fp16 is not None and not problem.question.far_beyond(fp16):
        broken = find_integer(lambda n: not problem.try_(ranking[:n], "cast").met, count - 1)
        return frozenset(ranking[: broken + 1])

    def holds(n: int) -> bool:
        problem.expect(lambda: [ranking[: max(count - 2 * n, 0)], ranking[: count - 3 * n // 4]])
        return problem.try_(ranking[: count - n], "cast").met

    cast = find_integer(holds, count)
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


search = GreedyOptuna(refine=refine)
