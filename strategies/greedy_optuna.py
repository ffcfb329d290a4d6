"""Strategy ``greedy-optuna``, the default: rank, cast greedily, refine with Optuna, prune.

A sequence of named passes over one ``problem.try_``, each with one guarantee:

``cast``
    Along a ranking of the units, a boundary: those beyond it are FP16, and the budget is met.
``prune``
    Each unit was tried in FP16; after the last pass, no single one can be cast within the budget.
``bound``
    Disjoint sets of units that each break the budget alone have been found; where there are as
    many as units kept, and each breaks it by far, no search for fewer is needed.
``rank``
    Every unit has been FP16 alone, the rest FP32, where there are few enough of them. (From the
    other side, one unit FP32 and the rest FP16, an overflow that spans several ops shows nothing
    when one of them is fixed.)
``refine``
    Optuna (TPE, Bergstra et al. 2011, with the budget as a constraint) has tried the units whose
    place is in doubt, starting from the set so far.
``exchange``
    Putting one unit in, or two, does not let more others out, as far as the trials allowed.
``exhaust``
    Where few sets are one smaller, all of them have been tried; then those that are two smaller,
    as far as the trials allowed.
``settle``
    No unit can be swapped for its neighbour to save a cast, as far as the trials allowed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import optuna

from mpsearch.problem import Problem

from ._study import open_study

#: Share of the trials that ranking one by one may take.
_RANK_SHARE = 0.25
_REFINE_SHARE = 0.25
#: Trials for the lower bound before it is given up as a way to stop: per unit kept, and besides.
_BOUND_PER_UNIT, _BOUND_TRIALS = 1.5, 12
#: Units outside the set that are tried in it before others are cast in exchange.
_ENTERING = 12
#: Swaps with neighbours that are tried at the end to save casts.
_SETTLE_TRIALS = 20


def search(problem: Problem) -> None:
    """Run the passes; see the module's docstring."""
    kept = _prune(problem, _cast(problem, problem.keep_order()))
    if len(problem.units) <= problem.remaining * _RANK_SHARE and not _reached(problem, kept):
        other = _prune(problem, _cast(problem, _rank(problem)))
        kept = min(kept, other, key=problem.rank)
    if not _reached(problem, kept):
        kept = _prune(problem, _refine(problem, kept))
        kept = _exchange(problem, kept)
        _exhaust(problem, kept)
    _settle(problem)
    if problem.best is not None:
        _prune(problem, problem.best.kept, again=True)


def _reached(problem: Problem, kept: frozenset[int]) -> bool:
    """Whether the lower bound shows that there is nothing smaller to find."""
    if problem.objective != "ops":
        return False
    trials = int(_BOUND_PER_UNIT * len(kept)) + _BOUND_TRIALS
    bound = problem.lower_bound(len(kept), trials, clear=True)
    return bound == problem.price(kept) and not problem.marginal


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
    trials = problem.try_many([everything - {u} for u in everything], "rank", exact=True)
    loss = {next(iter(everything - t.kept)): t.loss for t in trials}
    place = {u: i for i, u in enumerate(problem.keep_order())}
    return sorted(loss, key=lambda u: (-loss[u], place[u]))


def _cast(problem: Problem, ranking: Sequence[int]) -> frozenset[int]:
    """The shortest head of a ranking that meets the budget, by bisection."""
    count = len(ranking)
    cast = find_integer(lambda n: problem.try_(ranking[: count - n], "cast").met, count)
    return frozenset(ranking[: count - cast])


def _prune(problem: Problem, kept: frozenset[int], again: bool = False) -> frozenset[int]:
    """Cast units, those of least predicted harm first, more at once while that goes well.

    A unit that could not be cast seldom can be once others are; ``again`` goes over the set until
    that is known to be so.
    """
    least = max(max(problem.cost, default=0.0), 1.0) * 1e-9
    changed = True
    while changed:
        changed = False
        order = sorted(kept, key=lambda u: (problem.harm(u, kept) / max(problem.cost[u], least), u))
        place, step = 0, 1
        while place < len(order):
            smaller = kept.difference(order[place : place + step])
            if problem.rank(smaller) < problem.rank(kept) and problem.try_(smaller, "prune").met:
                kept, changed = smaller, again
                place, step = place + step, 2 * step
            elif step > 1:
                step = 1
            else:
                place += 1
    return kept


def _refine(problem: Problem, kept: frozenset[int]) -> frozenset[int]:
    """Ask Optuna about the units around the boundary."""
    inside = sorted(kept, key=lambda u: (problem.harm(u, kept), u))[:16]
    outside = sorted(problem.everything - kept, key=lambda u: (-problem.relief(u, kept), u))[:16]
    doubtful = sorted(inside + outside)
    tries = min(int(problem.remaining * _REFINE_SHARE), 4 * len(doubtful))
    if len(kept) < 2 or tries < 1:
        return kept
    fixed = kept.difference(doubtful)
    names = {u: f"{u}:{problem.units[u].name}" for u in doubtful}

    def objective(trial: optuna.Trial) -> float:
        chosen = {u for u in doubtful if trial.suggest_categorical(names[u], [False, True])}
        tried = fixed | chosen
        cost = problem.price(tried)
        trial.set_user_attr("kept", sorted(tried))
        best = problem.best
        if best is not None and cost >= problem.price(best.kept) and tried != best.kept:
            # No cheaper than what is known: no evaluation could make it the result.
            trial.set_constraint("budget", 1.0)
            return cost
        outcome = problem.try_(tried, "refine")
        over = min(outcome.loss - problem.budget, 1e6)
        trial.set_constraint("budget", over if outcome.met else max(over, 1e-12))
        return cost

    with open_study(problem, multivariate=True) as study:
        study.enqueue_trial({names[u]: u in kept for u in doubtful})
        study.optimize(objective, n_trials=tries)
    return kept if problem.best is None else problem.best.kept


def _exchange(problem: Problem, kept: frozenset[int]) -> frozenset[int]:
    """Put units in, take more out: first by the model's word, then by the true loss; repeat."""
    improved = True
    while improved and len(kept) > 1:
        improved = False
        for smaller in itertools.chain(_swapped(problem, kept), _grown_and_pruned(problem, kept)):
            if problem.price(smaller) < problem.price(kept) and (
                problem.try_(smaller, "exchange").met
            ):
                kept, improved = _prune(problem, smaller), True
                break
    return kept


def _swapped(problem: Problem, kept: frozenset[int]) -> Iterator[frozenset[int]]:
    """The unit that relieves most put in, two of those that harm least taken out."""
    entering = sorted(problem.everything - kept, key=lambda u: (-problem.relief(u, kept), u))
    for unit in entering[:_ENTERING]:
        grown = kept | {unit}
        leaving = sorted(kept, key=lambda u, g=grown: (problem.harm(u, g), u))  # type: ignore[misc]
        for pair in itertools.islice(_pairs(leaving), 6):
            yield grown.difference(pair)


def _grown_and_pruned(problem: Problem, kept: frozenset[int]) -> Iterator[frozenset[int]]:
    """The units put in that lower the true loss most, one or two, and all cast that then can be."""
    for grown in _grown(problem, kept):
        yield _prune(problem, grown)


def _pairs(ordered: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs, those of the first elements first."""
    pairs = itertools.combinations(range(min(len(ordered), 12)), 2)
    return [(ordered[i], ordered[j]) for i, j in sorted(pairs, key=sum)]


def _grown(problem: Problem, kept: frozenset[int]) -> Iterator[frozenset[int]]:
    """The set with one unit more, or two, those first that leave the smallest loss."""
    outside = sorted(problem.everything - kept, key=lambda u: (-problem.relief(u, kept), u))
    tried = [(u, problem.try_(kept | {u}, "exchange", exact=True)) for u in outside[:_ENTERING]]
    best = [u for u, trial in sorted(tried, key=lambda pair: (pair[1].loss, pair[0]))]
    for first in best[:2]:
        yield kept | {first}
    for pair in itertools.combinations(best[:4], 2):
        yield kept.union(pair)


def _exhaust(problem: Problem, kept: frozenset[int]) -> None:
    """Try all sets that are one smaller, then two, as long as the trials last."""
    every = sorted(problem.everything, key=lambda u: (-problem.relief(u, kept), u))
    for size in range(len(kept) - 1, 0, -1):
        if math.comb(len(every), size) > problem.remaining:
            return
        for chosen in itertools.combinations(every, size):
            if problem.try_(chosen, "exhaust").met:
                break


def _settle(problem: Problem) -> None:
    """Swap units for their neighbours where that leaves as many and saves casts."""
    for _ in range(_SETTLE_TRIALS):
        best = problem.best
        if best is None or problem.remaining <= 0:
            return
        swaps = (
            best.kept - {unit} | {other}
            for unit in best.kept
            for other in problem.neighbours(unit) - best.kept
        )
        fresh = {s for s in swaps if problem.known(s) is None and _saves(problem, s, best.kept)}
        if not fresh:
            return
        problem.try_(min(fresh, key=lambda s: (problem.rank(s), sorted(s))), "settle")


def _saves(problem: Problem, kept: frozenset[int], than: frozenset[int]) -> bool:
    return problem.rank(kept) < problem.rank(than)
