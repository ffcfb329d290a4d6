"""Orders in which a sum may be taken, one FP16 addition after the other.

In which order Apple's kernels add is not public; ``mpsearch probe`` looks. The orders are those
that Xie and others found in libraries ("FPRev: Revealing the Order of Floating-Point Summation",
2025).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

from ..errors import InputError

T = TypeVar("T")
Add = Callable[[T, T], T]
#: Takes terms and an addition, and gives their sum; at least one term.
Order = Callable[[Iterable[T], Add[T]], T]


def _sequential(terms: Iterable[T], add: Add[T]) -> T:
    """One term after the other: ((a + b) + c) + d."""
    rest = iter(terms)
    total = next(rest)
    for term in rest:
        total = add(total, term)
    return total


def _pairwise(terms: Iterable[T], add: Add[T]) -> T:
    """Neighbors first, then neighboring pairs: (a + b) + (c + d)."""
    partial_sums: list[tuple[int, T]] = []
    for term in terms:
        size, total = 1, term
        while partial_sums and partial_sums[-1][0] == size:
            _, before = partial_sums.pop()
            size, total = 2 * size, add(before, total)
        partial_sums.append((size, total))
    _, total = partial_sums.pop()
    while partial_sums:
        total = add(partial_sums.pop()[1], total)
    return total


def _strided(lanes: int, terms: Iterable[T], add: Add[T]) -> T:
    """Every so-manieth term into a total of its own, as SIMD does; then those pairwise."""
    totals: list[T] = []
    for place, term in enumerate(terms):
        if place < lanes:
            totals.append(term)
        else:
            totals[place % lanes] = add(totals[place % lanes], term)
    return _pairwise(totals, add)


def _blocked(size: int, terms: Iterable[T], add: Add[T]) -> T:
    """So many neighbors one after the other; then those sums one after the other."""
    sums: list[T] = []
    for place, term in enumerate(terms):
        if place % size:
            sums[-1] = add(sums[-1], term)
        else:
            sums.append(term)
    return _sequential(sums, add)


_WIDTHS = (2, 4, 8, 16, 32)
#: By name, in which profiles have them.
ORDERS: dict[str, Order] = {
    "sequential": _sequential,
    "pairwise": _pairwise,
    **{f"strided {n}": partial(_strided, n) for n in _WIDTHS},
    **{f"blocked {n}": partial(_blocked, n) for n in _WIDTHS},
}


def order(name: str) -> Order:
    """The order of that name.

    Raises
    ------
    InputError
        If there is none.
    """
    if name not in ORDERS:
        raise InputError(f"order {name!r} is not known; choose from {', '.join(ORDERS)}")
    return ORDERS[name]
