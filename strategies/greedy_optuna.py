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
``respond``
    Exchanges were made as long as what the trials say of the outputs' errors
    (:mod:`mpsearch.search.response`) led to smaller sets.
``refine``
    Optuna (TPE, Bergstra et al. 2011, with the budget as a constraint) has tried the units whose
    place is in doubt, starting from the set so far and told what has been tried.
``exchange``
    Putting in one or two of the units that lower the true loss most does not let more others out.
``exhaust``
    Where few sets are one smaller, all of them have been tried; then those that are two smaller,
    as far as the trials allowed.
``settle``
    No unit can be swapped for its neighbour to save a cast, as far as the trials allowed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import optuna

from mpsearch.search.problem import Problem

from ._study import open_study, over

#: Share of the trials that ranking one by one may take.
_RANK_SHARE = 0.25
_REFINE_SHARE = 0.25
#: Share of the trials left that one pruning may take.
_PRUNE_SHARE = 0.5
#: Trials for the lower bound before it is given up as a way to stop: per unit kept, and besides.
_BOUND_PER_UNIT, _BOUND_TRIALS = 1.5, 12
#: Units outside the set that are tried in it before others are cast in exchange.
_ENTERING = 8
#: Exchanges in a row that may fail before the responses are given up, and how many units of those
#: kept, and of the others, they are taken from.
_MISSES, _CHANGING = 48, 24
#: A squared effect from which on casting is hopeless: an overflow.
_HOPELESS = 1e20
#: Swaps with neighbours that are tried at the end to save casts.
_SETTLE_TRIALS = 20


def search(problem: Problem) -> None:
    """Run the passes; see the module's docstring."""
    ranking = problem.keep_order()
    # With little time the model's own boundary comes first, so that there is an answer early.
    cast = _foresee if problem.ending.limited else _cast
    kept = _prune(problem, cast(problem, ranking))
    if len(problem.units) <= problem.remaining * _RANK_SHARE and not _reached(problem, kept):
        other = _prune(problem, _cast(problem, _rank(problem)))
        kept = min(kept, other, key=problem.rank)
    if not _reached(problem, kept):
        kept = _respond(problem, kept)
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
    if trials > problem.remaining / 2:
        return False  # too many ops are kept for a proof to pay
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


def _foresee(problem: Problem, ranking: Sequence[int]) -> frozenset[int]:
    """The shortest head of a ranking that meets the budget, sought from where the model sees it."""
    broken, head = -1, problem.boundary(ranking)
    while head < len(ranking) and not problem.try_(ranking[:head], "foresee").met:
        broken, head = head, min(len(ranking), max(head + 1, 3 * head // 2))
    while head - broken > 1:
        middle = (head + broken) // 2
        if problem.try_(ranking[:middle], "foresee").met:
            head = middle
        else:
            broken = middle
    return frozenset(ranking[:head])


def _prune(problem: Problem, kept: frozenset[int], again: bool = False) -> frozenset[int]:
    """Cast units, those of least predicted harm first, more at once while that goes well.

    A unit that could not be cast seldom can be once others are; ``again`` goes over the set until
    that is known to be so, however many trials it takes.
    """
    least = max(max(problem.cost, default=0.0), 1.0) * 1e-9
    spare = 0 if again else int(problem.remaining * (1 - _PRUNE_SHARE))
    changed = True
    while changed:
        changed = False
        order = sorted(kept, key=lambda u: (problem.harm(u, kept) / max(problem.cost[u], least), u))
        place, step = 0, 1
        while place < len(order) and problem.remaining > spare:
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
        trial.set_constraint("budget", over(problem, problem.try_(tried, "refine")))
        return cost

    with open_study(problem, multivariate=True) as study:
        study.add_trials(_told(problem, fixed, names))
        study.optimize(objective, n_trials=tries)
    return kept if problem.best is None else problem.best.kept


def _told(
    problem: Problem, fixed: frozenset[int], names: Mapping[int, str]
) -> list[optuna.trial.FrozenTrial]:
    """What has been tried already of the units in doubt, for the sampler to learn from."""
    choice = optuna.distributions.CategoricalDistribution([False, True])
    return [
        optuna.trial.create_trial(
            params={name: unit in tried.kept for unit, name in names.items()},
            distributions=dict.fromkeys(names.values(), choice),
            value=tried.price,
            user_attrs={"kept": sorted(tried.kept)},
            constraints={"budget": over(problem, tried)},
        )
        for tried in problem.history
        if tried.kept.difference(names) == fixed
    ]


def _respond(problem: Problem, kept: frozenset[int]) -> frozenset[int]:
    """Exchange by what the trials so far say of the outputs' errors, until that misleads."""
    misses = 0
    while misses < _MISSES and len(kept) > 1:
        response = problem.response(kept, _changing(problem, kept))
        if not response.informed:
            break
        sets = response.exchanges(problem.cost)
        smaller = next((s for s in sets if _fresh(problem, s, kept)), None)
        if smaller is None:
            break
        met = problem.try_(smaller, "respond").met
        kept, misses = (smaller, 0) if met else (kept, misses + 1)
    return kept


def _changing(problem: Problem, kept: frozenset[int]) -> list[int]:
    """The units whose place is in doubt: those that harm least, and those that relieve most."""
    harm = {u: problem.harm(u, kept) for u in kept}
    relief = {u: problem.relief(u, kept) for u in problem.everything - kept}
    inside = sorted((u for u in harm if harm[u] < _HOPELESS), key=lambda u: (harm[u], u))
    outside = sorted((u for u in relief if relief[u] > 0), key=lambda u: (-relief[u], u))
    return inside[:_CHANGING] + outside[:_CHANGING]


def _fresh(problem: Problem, smaller: frozenset[int], kept: frozenset[int]) -> bool:
    return problem.known(smaller) is None and problem.price(smaller) < problem.price(kept)


def _exchange(problem: Problem, kept: frozenset[int]) -> frozenset[int]:
    """Put units in and cast all that then can be, as long as that takes out more than it put in."""
    improved = True
    while improved and len(kept) > 1:
        improved = False
        for grown in _grown(problem, kept):
            smaller = _prune(problem, grown)
            if problem.price(smaller) < problem.price(kept):
                kept, improved = _respond(problem, smaller), True
                break
    return kept


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
