"""Strategy ``greedy-optuna``, the default: rank, cast greedily, refine with Optuna, prune.

A sequence of named passes over one ``problem.try_``, each with one guarantee:

``rank``
    Every unit has been FP16 alone, the rest FP32, where there are few enough of them. (From the
    other side, one unit FP32 and the rest FP16, an overflow that spans several ops shows nothing
    when one of them is fixed.) The first-order model of rounding ranks them all in any case.
``cast``
    Along each ranking, a boundary: the units beyond it are FP16, and the budget is met.
``prune``
    No single unit of the set can be cast to FP16 within the budget.
``bound``
    Disjoint sets of units that each break the budget alone have been found, as many as the order
    gives; where there are as many as units kept, the search is over.
``refine``
    Optuna (TPE, Bergstra et al. 2011, with the budget as a constraint) has tried the units whose
    place is in doubt, starting from the set so far.
``exchange``
    Putting one unit in does not let two others out, as far as the trials allowed.
``exhaust``
    Where few sets are smaller, all of them have been tried: the set is the smallest there is.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence

import optuna

from mpsearch.problem import Problem

#: Share of the trials that ranking one by one may take.
_RANK_SHARE = 0.25
_REFINE_SHARE = 0.25


def search(problem: Problem) -> None:
    """Run the passes; see the module's docstring."""
    kept = _cast(problem, _rankings(problem))
    kept = _prune(problem, kept)
    if problem.lower_bound() == problem.price(kept):
        return
    kept = _prune(problem, _refine(problem, kept))
    kept = _exchange(problem, kept)
    _exhaust(problem, kept)


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


def _rankings(problem: Problem) -> list[list[int]]:
    """Rankings of the units, the worst first: by the model, and one by one where that is cheap."""
    rankings = [problem.keep_order()]
    if len(problem.units) <= problem.trials * _RANK_SHARE:
        everything = problem.everything
        trials = problem.try_many([everything - {u} for u in everything], "rank", exact=True)
        loss = {next(iter(everything - t.kept)): t.loss for t in trials}
        place = {u: i for i, u in enumerate(rankings[0])}
        rankings.append(sorted(loss, key=lambda u: (-loss[u], place[u])))
    return rankings


def _cast(problem: Problem, rankings: Sequence[Sequence[int]]) -> frozenset[int]:
    """The cheapest head of a ranking that meets the budget, by bisection."""
    heads = []
    for ranking in rankings:
        count = len(ranking)
        cast = find_integer(lambda n, r=ranking: problem.try_(r[: len(r) - n], "cast").met, count)  # type: ignore[misc]
        heads.append(frozenset(ranking[: count - cast]))
    return min(heads, key=problem.price)


def _prune(problem: Problem, kept: frozenset[int]) -> frozenset[int]:
    """Cast units as long as one can be, those of least predicted harm for their cost first."""
    changed = True
    while changed:
        changed = False
        for unit in sorted(kept, key=lambda u: (problem.harm(u, kept) / problem.cost[u], u)):
            if problem.try_(kept - {unit}, "prune").met:
                kept, changed = kept - {unit}, True
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

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(seed=problem.seed, multivariate=True)
        problem.study = optuna.create_study(direction="minimize", sampler=sampler)
        problem.study.enqueue_trial({names[u]: u in kept for u in doubtful})
        problem.study.optimize(objective, n_trials=tries)
    return kept if problem.best is None else problem.best.kept


def _exchange(problem: Problem, kept: frozenset[int]) -> frozenset[int]:
    """Put in the unit that relieves most, take out the two that harm least; repeat."""
    improved = True
    while improved and len(kept) > 1:
        improved = False
        current = kept
        entering = sorted(
            problem.everything - current, key=lambda u: (-problem.relief(u, current), u)
        )
        for unit in entering:
            grown = current | {unit}
            leaving = sorted(current, key=lambda u, g=grown: (problem.harm(u, g), u))  # type: ignore[misc]
            for pair in itertools.islice(_pairs(leaving), 6):
                smaller = grown.difference(pair)
                if problem.price(smaller) < problem.price(current) and (
                    problem.try_(smaller, "exchange").met
                ):
                    kept, improved = _prune(problem, smaller), True
                    break
            if improved:
                break
    return kept


def _pairs(ordered: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs, those of the first elements first."""
    pairs = itertools.combinations(range(min(len(ordered), 12)), 2)
    return [(ordered[i], ordered[j]) for i, j in sorted(pairs, key=sum)]


def _exhaust(problem: Problem, kept: frozenset[int]) -> None:
    """Try every cheaper set, the smallest first."""
    sizes = range(1, len(kept))
    if sum(math.comb(len(problem.units), k) for k in sizes) > problem.remaining:
        return
    for k in sizes:
        for chosen in itertools.combinations(range(len(problem.units)), k):
            if problem.try_(chosen, "exhaust").met:
                return
