"""Proof by exhaustion: every cheaper set, tried."""

from __future__ import annotations

import itertools
import math

from ..ending import Stop
from .confirming import judge
from .problem import Problem

#: More sets than this are not tried one by one to prove that none of them will do.
PROVABLE = 1 << 17


def prove(problem: Problem, most: int = PROVABLE) -> bool:
    """Try every set cheaper than the best, the smallest first, whatever the trials allow.

    Returns
    -------
    bool
        Whether no cheaper set meets the budget; False as well where there are more than ``most``
        of them, or the time is used up.
    """
    question, record, top = problem.question, problem.record, len(problem.everything)
    if problem.best is None:
        return False
    beyond = problem.evaluator.aims_beyond
    # Where the price is not the number of units, a larger set can be the cheaper one.
    by_size = question.objective == "ops" and all(len(u.ops) == 1 for u in question.units)
    sizes = range(len(problem.best.kept) if by_size else top + 1)
    if sum(math.comb(top, k) for k in sizes) > most:
        return False
    for k in sizes:
        for chosen in itertools.combinations(range(top), k):
            key = frozenset(chosen)
            dearer = question.price(key) >= question.price(problem.best.kept)
            if dearer or record.rejected(key) or problem.refuted(key):
                continue
            if not question.forced <= key or (not beyond and record.known(key) is not None):
                continue
            try:
                problem.extend(1)
                if beyond:  # what few samples say of the next one is no proof
                    judge(problem, key, question.limit, "prove")
                else:
                    problem.try_(key, "prove")
            except Stop:
                return False
    return True
