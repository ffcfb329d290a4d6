"""Proof by exhaustion: every cheaper set is judged."""

from __future__ import annotations

import itertools
import math

from ..ending import Stop
from .search import Search

#: More sets than this are not judged one by one to prove that none of them holds.
PROVABLE = 1 << 17


def prove(search: Search, most: int = PROVABLE) -> bool:
    """Judge every set cheaper than the best, the smallest first, whatever the trials allow.

    Returns
    -------
    bool
        Whether no cheaper set holds; False as well where there are more than ``most`` of them, or
        the time is used up.
    """
    problem, top = search.problem, len(search.problem.units)
    best = search.best
    if best is None:
        return False
    # Where the price is not the number of units, a larger set can be the cheaper one.
    by_size = problem.objective == "ops" and all(len(u.ops) == 1 for u in problem.units)
    sizes = range(len(best.fp32) if by_size else top + 1)
    if sum(math.comb(top, k) for k in sizes) > most:
        return False
    for k in sizes:
        for chosen in itertools.combinations(range(top), k):
            cheapest = search.best or best
            if problem.price(chosen) >= cheapest.price or not search.required.issubset(chosen):
                continue
            try:
                search.allowed = max(search.allowed, len(search.trials) + 1)
                search.judge(chosen, "prove")
            except Stop:
                return False
    return True
