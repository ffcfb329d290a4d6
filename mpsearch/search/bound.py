"""A lower bound on the number of FP32 ops.

If keeping more ops in FP32 never hurts, a set of units that breaks the budget when only they are
FP16 must lose at least one member to FP32 in every solution; disjoint sets of that kind must lose
one each. The assumption is not always true, since rounding errors can cancel: where the trials
show it failing, no bound is claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

Breaks = Callable[[Sequence[int]], bool]


def disjoint_cores(
    order: Sequence[int], breaks: Breaks, wanted: int | None = None
) -> list[list[int]]:
    """Disjoint sets of units that each break the budget when only they are FP16.

    Taken greedily from ``order``, the worst first: each time the shortest head of what remains that
    breaks the budget. With ``wanted``, the search ends once so many cannot be had unless cores get
    smaller than any before, which they seldom do, since what is left hurts less.
    """
    cores: list[list[int]] = []
    remaining = list(order)
    while remaining:
        size = min(map(len, cores), default=1)
        if wanted is not None and (wanted - len(cores)) * size > len(remaining):
            break
        core = _shortest_head(remaining, breaks)
        if core is None:
            break
        cores.append(core)
        members = set(core)
        remaining = [u for u in remaining if u not in members]
    return cores


def _shortest_head(units: Sequence[int], breaks: Breaks) -> list[int] | None:
    # A few units break the budget alone; beyond those, all that is left together may.
    if breaks(units[:1]):
        return list(units[:1])
    if len(units) == 1 or not breaks(units):
        return None
    low, high = 1, len(units)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if breaks(units[:middle]) else (middle, high)
    return list(units[:high])


def monotone(met: Iterable[frozenset[int]], broken: Iterable[frozenset[int]]) -> bool:
    """Whether no set that met the budget lies within one that broke it."""
    failures = list(broken)
    return not any(a < b for a in met for b in failures)
