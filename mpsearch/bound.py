"""A lower bound on the number of FP32 ops.

If keeping more ops in FP32 never hurts, a set of units that breaks the budget when only they are
FP16 must lose at least one member to FP32 in every solution; disjoint sets of that kind must lose
one each. The assumption is not always true, since rounding errors can cancel: where the trials
show it failing, no bound is claimed.
"""

from __future__ import annotations

from .problem import Problem


def lower_bound(problem: Problem, evaluations: int = 80) -> int | None:
    """At least so much must be paid for FP32, counted as ``problem.cost`` counts.

    Disjoint breaking sets are taken greedily: each time the shortest head of the remaining units,
    the worst first, that breaks the budget when it alone is FP16. Uses up to ``evaluations`` beyond
    those of the search; fewer give a lower bound, which stays valid.

    Returns
    -------
    int or None
        None where the trials contradict the assumption.
    """
    best = problem.best
    if best is None or not _monotone(problem):
        return None
    spent = len(problem.history)
    remaining = problem.keep_order()
    everything = problem.everything
    bound = 0.0

    def breaks(units: list[int]) -> bool:
        return not problem.probe(everything.difference(units), "bound").met

    while remaining and len(problem.history) - spent < evaluations:
        # Few units break the budget alone; beyond those, all that is left together may.
        if breaks(remaining[:1]):
            core = remaining[:1]
        elif not breaks(remaining):
            break
        else:
            low, high = 1, len(remaining)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if breaks(remaining[:middle]) else (middle, high)
            core = remaining[:high]
        bound += min(problem.cost[u] for u in core)
        members = set(core)
        remaining = [u for u in remaining if u not in members]
    if not _monotone(problem) or bound > problem.price(best.kept):
        return None
    return int(bound)


def _monotone(problem: Problem) -> bool:
    """Whether no trial that met the budget lies within one that broke it."""
    met = [t.kept for t in problem.history if t.met]
    broken = [t.kept for t in problem.history if not t.met]
    return not any(a < b for a in met for b in broken)
