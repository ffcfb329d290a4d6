"""Units whose place in a set is in doubt, and exchanges of them by the rounding model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from .problem import Problem
from .question import Kept

#: A squared effect from which on casting is hopeless: an overflow.
_HOPELESS = 1e20
#: How many of the units kept, and of the others, single exchanges are made from, and larger ones.
_UNITS, _FEW = 24, 10


def in_doubt(problem: Problem, kept: Kept, count: int) -> tuple[list[int], list[int]]:
    """The units of a set that harm least when cast, and those beside it that relieve most."""
    harm = {u: problem.harm(u, kept) for u in kept}
    relief = {u: problem.relief(u, kept) for u in problem.everything - kept}
    inside = sorted((u for u in harm if harm[u] < _HOPELESS), key=lambda u: (harm[u], u))
    outside = sorted((u for u in relief if relief[u] > 0), key=lambda u: (-relief[u], u))
    return inside[:count], outside[:count]


def exchanges(problem: Problem, kept: Kept) -> Iterator[Kept]:
    """Cheaper sets: two units are cast for one, or three for two; the least predicted error first.

    To first order, what units add to the squared error adds up.
    """
    inside, outside = in_doubt(problem, kept, _UNITS)
    harm = {u: problem.harm(u, kept) for u in inside}
    relief = {u: problem.relief(u, kept) for u in outside}
    sizes = [(inside, 2, outside, 1), (inside[:_FEW], 3, outside[:_FEW], 2)]
    found = [
        (sum(harm[u] for u in cast) - sum(relief[u] for u in put), cast, put)
        for units, out, others, into in sizes
        for cast in combinations(units, out)
        for put in combinations(others, into)
    ]
    price = problem.question.price(kept)
    for _, cast, put in sorted(found):
        exchanged = kept.difference(cast).union(put)
        if problem.question.price(exchanged) < price:
            yield exchanged
