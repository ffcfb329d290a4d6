"""Mends a set that a sample has shown to be too small: what it needs is added, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ..ending import Stop
from .problem import Problem
from .pruning import prune
from .question import Kept

#: Evaluations that mending one set may take beyond those that the search was given: so many, and
#: one for each unit.
_TRIALS = 24


def mend(problem: Problem, kept: Kept) -> None:
    """Find a set that meets the limit near one that no longer does.

    Units are added in the order of what the rounding model says that they relieve, then taken back
    where they turn out not to be needed; ``problem.best`` is then a set that meets the limit. Those
    of ``kept`` were needed for less, and are not tried again.

    Raises
    ------
    Stop
        If the run is to end.
    """
    problem.extend(max(problem.remaining, _TRIALS))
    if problem.try_(kept, "mend").met:
        return
    order = enlarging(problem, kept)
    mended = kept.union(order[: _least(problem, kept, order)])
    problem.extend(max(problem.remaining, _TRIALS + len(mended - kept)))
    with suppress(Stop):
        prune(problem, mended, "mend", needed=kept)
    problem.ending.check()


def enlarging(problem: Problem, kept: Kept) -> list[int]:
    """The units outside a set, those first that relieve most for what they cost."""
    cost = problem.question.cost
    relief = {u: problem.relief(u, kept) for u in problem.everything - kept}
    return sorted(relief, key=lambda u: (-relief[u] / max(cost[u], 1e-9), u))


def _least(problem: Problem, kept: Kept, order: Sequence[int]) -> int:
    """How many units must be added, given that more never hurt: a probe, then bisection."""
    low, high = 0, 1
    while high < len(order) and not problem.try_(kept.union(order[:high]), "mend").met:
        low, high = high, min(2 * high, len(order))
    while high - low > 1:
        middle = (low + high) // 2
        if problem.try_(kept.union(order[:middle]), "mend").met:
            high = middle
        else:
            low = middle
    return high
