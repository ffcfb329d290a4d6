"""Casts units of a set while the limit is met."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from .problem import Problem
from .question import Kept

#: How many units are expected to be tried next: most of them are needed.
_AHEAD = 16


def prune(
    problem: Problem,
    kept: Kept,
    by: str = "prune",
    again: bool = False,
    needed: Kept = frozenset(),
    meets: Callable[[Kept], bool] | None = None,
) -> Kept:
    """Cast units, those of least predicted harm first, more at once while that goes well.

    A unit that could not be cast seldom can be once others are; ``again`` goes over the set until
    that is known to be so. ``by`` is the name of the pass; units that are ``needed`` stay.
    ``meets`` says whether a set will do, if that is not asked of ``problem.try_``.

    Raises
    ------
    Stop
        If trials or time are used up.
    """
    question = problem.question
    least = max(max(question.cost, default=0.0), 1.0) * 1e-9
    changed = True
    while changed:
        changed = False
        free = kept - needed
        harm = {u: problem.harm(u, kept) / max(question.cost[u], least) for u in free}
        order = sorted(free, key=lambda u: (harm[u], u))
        place, step = 0, 1
        while place < len(order):
            smaller = kept.difference(order[place : place + step])
            cheaper = question.rank(smaller) < question.rank(kept)
            if meets is None:
                problem.expect(partial(_next, kept, order[place:], step))
            if cheaper and (problem.try_(smaller, by).met if meets is None else meets(smaller)):
                kept, changed = smaller, again
                place, step = place + step, 2 * step
            elif step > 1:
                step = 1
            else:
                place += 1
    return kept


def _next(kept: Kept, order: Sequence[int], step: int) -> list[Kept]:
    """What is likely to be tried after so many of the first units.

    Where several are cast at once, the last could be, and so may these; or else they cannot.
    """
    alone = [kept.difference([unit]) for unit in order[step == 1 :][:_AHEAD]]
    met = kept.difference(order[: 3 * step])
    return [met, *alone] if met and step > 1 else alone
