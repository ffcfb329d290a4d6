"""Strategy ``greedy-optuna``: rank, cast greedily, refine with Optuna, prune.

A sequence of named passes, each with one guarantee:

``rank``
    Every unit has been FP16 alone, the rest FP32; units that break the budget so are *culprits*.
    (From the other side, one unit FP32 and the rest FP16, an overflow that spans several ops
    shows nothing when one of them is fixed.)
``cast``
    Along the ranking, a boundary: everything less sensitive is FP16, and the budget is met.
``refine``
    Optuna (TPE, Bergstra et al. 2011, with the budget as a constraint) has tried the units whose
    place beside the boundary is in doubt, starting from the greedy set.
``prune``
    No single unit of the set can be cast to FP16 within the budget.
``exchange``
    No single unit outside the set lets two inside be cast, as far as the trials allowed.
``exhaust``
    Where few units are left in doubt, all smaller sets have been tried: the set is the smallest.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable

import optuna

from mpsearch.problem import Problem, Stop


def find_integer(holds: object, high: int) -> int:
    """The largest n in 0..high for which ``holds(n)``, given that it holds up to some n only.

    Exponential probe, then bisection (Hypothesis, ``find_integer``).
    """
    assert callable(holds)
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


def search(problem: Problem) -> None:
    """Run the passes; see the module's docstring."""
    order = _rank(problem)
    kept = _cast(problem, order)
    kept = _prune(problem, kept, order)
    kept = _refine(problem, kept, order)
    kept = _prune(problem, kept, order)
    kept = _exchange(problem, kept, order)
    _exhaust(problem, kept)


def _rank(problem: Problem) -> list[int]:
    """Units from the most to the least sensitive."""
    everything = problem.everything
    losses: dict[int, float] = {}
    # Where there are more units than trials allow, neighbours share a test and are told apart
    # only if it fails.
    allowed = max(1, problem.trials // 3)
    size = math.ceil(len(problem.units) / allowed)
    groups = [
        list(range(i, min(i + size, len(problem.units))))
        for i in range(0, len(problem.units), size)
    ]
    for group in groups:
        trial = problem.try_(everything - set(group), "rank", exact=True)
        for unit in group:
            losses[unit] = trial.loss / len(group)
        if len(group) > 1 and not trial.met:
            for unit in group:
                losses[unit] = problem.try_(everything - {unit}, "rank", exact=True).loss
    return sorted(losses, key=lambda u: (-_finite(losses[u]), u))


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else 1e300


def _cast(problem: Problem, order: list[int]) -> frozenset[int]:
    """The shortest head of the ranking that meets the budget, by bisection."""
    count = len(order)

    def casts(n: int) -> bool:
        return problem.try_(order[: count - n], "cast").met

    return frozenset(order[: count - find_integer(casts, count)])


def _refine(problem: Problem, kept: frozenset[int], order: list[int]) -> frozenset[int]:
    """Ask Optuna about the units around the boundary."""
    boundary = len(kept)
    reach = max(4, min(24, boundary))
    doubtful = order[max(0, boundary - reach) : boundary + reach]
    fixed = kept.difference(doubtful)
    tries = min(problem.remaining // 3, 10 * len(doubtful))
    if not doubtful or tries < 1 or not kept:
        return kept

    def constraint(trial: optuna.trial.FrozenTrial) -> tuple[float]:
        return (trial.user_attrs["excess"],)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(
            seed=problem.seed, constraints_func=constraint, multivariate=True
        )
        study = optuna.create_study(direction="minimize", sampler=sampler)
        problem.study = study
        study.enqueue_trial({problem.units[u].name: u in kept for u in doubtful})

        def objective(trial: optuna.Trial) -> float:
            chosen = [
                u
                for u in doubtful
                if trial.suggest_categorical(problem.units[u].name, [False, True])
            ]
            tried = fixed.union(chosen)
            best = problem.best
            if best is not None and problem.price(tried) > problem.price(best.kept):
                # Dearer than what is known: no evaluation can make it the result.
                trial.set_user_attr("excess", 1.0)
                return problem.price(tried)
            outcome = problem.try_(tried, "refine")
            excess = outcome.loss / problem.budget - 1 if problem.budget > 0 else outcome.loss
            trial.set_user_attr("excess", min(excess, 1e6) if not outcome.met else -1.0)
            return problem.price(tried)

        for _ in range(tries):
            if problem.remaining <= 0:
                raise Stop
            study.optimize(objective, n_trials=1)
    return problem.best.kept if problem.best is not None else kept


def _prune(problem: Problem, kept: frozenset[int], order: list[int]) -> frozenset[int]:
    """Cast what can be cast, the least sensitive and the dearest first."""
    place = {u: i for i, u in enumerate(order)}
    changed = True
    while changed:
        changed = False
        for unit in sorted(kept, key=lambda u: (-problem.cost[u], -place[u])):
            if problem.try_(kept - {unit}, "prune").met:
                kept, changed = kept - {unit}, True
    return kept


def _exchange(problem: Problem, kept: frozenset[int], order: list[int]) -> frozenset[int]:
    """Put one unit in, take two or more out."""
    improved = True
    while improved and len(kept) > 1:
        improved = False
        for entering in [u for u in order if u not in kept]:
            grown = kept | {entering}
            shrunk = grown
            for leaving in sorted(kept, key=order.index, reverse=True):
                if problem.try_(shrunk - {leaving}, "exchange").met:
                    shrunk = shrunk - {leaving}
            if problem.price(shrunk) < problem.price(kept):
                kept, improved = _prune(problem, shrunk, order), True
                break
    return kept


def _exhaust(problem: Problem, kept: frozenset[int]) -> None:
    """Try every smaller set, the smallest first."""
    sizes = range(1, len(kept))
    if sum(math.comb(len(problem.units), k) for k in sizes) > problem.remaining:
        return
    for k in sizes:
        for chosen in _combinations(problem, k):
            if problem.try_(chosen, "exhaust").met:
                return


def _combinations(problem: Problem, k: int) -> Iterable[tuple[int, ...]]:
    return itertools.combinations(range(len(problem.units)), k)
