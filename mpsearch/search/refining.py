"""Makes a set that holds smaller: units are cast, then exchanged."""

from __future__ import annotations

from .problem import UnitSet
from .sampler import ResponseSampler
from .search import Search, hits_all

#: A squared effect from which on casting is hopeless: an overflow.
_HOPELESS = 1e20


def prune(
    search: Search, fp32: UnitSet, needed: UnitSet = frozenset(), by: str = "prune"
) -> UnitSet:
    """Cast units until no single one can be cast; what is left.

    Units of least predicted harm for their cost come first, several at once while that goes well.
    A unit that is the only one of a conflict in FP32 is not tried, and neither are those
    ``needed``.

    Raises
    ------
    Stop
        If trials or time are used up.
    """
    problem = search.problem
    least = max(max(problem.cost, default=0.0), 1.0) * 1e-9
    changed = True
    while changed:
        changed = False
        harm = {
            u: search.ranking.harm(u, fp32) / max(problem.cost[u], least) for u in fp32 - needed
        }
        order = sorted(harm, key=lambda u: (harm[u], u))
        place, step = 0, 1
        while place < len(order):
            smaller = fp32.difference(order[place : place + step])
            cheaper = problem.rank(smaller) < problem.rank(fp32)
            if cheaper and hits_all(search.conflicts, smaller) and search.judge(smaller, by).met:
                fp32, changed = smaller, True
                place, step = place + step, 2 * step
            elif step > 1:
                step = 1
            else:
                place += 1
    return fp32


def exchange(search: Search, misses: int, units: int) -> None:
    """Exchange units of the best set by an Optuna sampler, until that misleads.

    Parameters
    ----------
    misses
        Proposals in a row that may fail.
    units
        How many units of the set, and of the others, exchanges are made from.

    Raises
    ------
    Stop
        If trials or time are used up.
    """
    failed = 0
    while failed < misses and search.best is not None and len(search.best.fp32) > 1:
        before = search.best.fp32
        trial = search.sample(ResponseSampler(search, _in_doubt(search, before, units)), "refine")
        if trial is None:
            return
        failed = 0 if search.best.fp32 != before else failed + 1


def _in_doubt(search: Search, fp32: UnitSet, count: int) -> list[int]:
    """The units of a set that harm least when cast, and those beside it that relieve most."""
    ranking = search.ranking
    harm = {u: ranking.harm(u, fp32) for u in fp32}
    relief = {u: ranking.relief(u, fp32) for u in search.problem.all_units - fp32}
    inside = sorted((u for u in harm if harm[u] < _HOPELESS), key=lambda u: (harm[u], u))
    outside = sorted((u for u in relief if relief[u] > 0), key=lambda u: (-relief[u], u))
    return inside[:count] + outside[:count]
