"""Casts what a set that holds does not need after all, by what all samples say of it."""

from __future__ import annotations

from collections.abc import Callable, Set
from contextlib import suppress
from itertools import islice

from ..ending import Stop
from .confirming import judge
from .exchanging import exchanges
from .problem import Problem
from .pruning import prune
from .question import Kept

#: Exchanges in a row that may fail before there are no more.
_MISSES = 100


def settle(problem: Problem, held: Kept, limit: float, spared: Set[int] = frozenset()) -> None:
    """Cast units of a set that holds until it takes all that are left, then exchange units.

    What is searched on is few samples, whose losses stand for the next ones, and those that broke
    the limit before, of which none may break it now: a set that was found there may keep more than
    all samples together ask for. ``problem.best`` is then a set that holds. From then on is not
    searched on what it may break; ``spared`` are the samples that the set held may.

    Parameters
    ----------
    limit
        Of the loss.
    """
    problem.settle_for(held, limit)
    problem.extend(max(problem.remaining, len(held)))
    may_break: dict[Kept, Set[int]] = {held: spared}

    def meets(kept: Kept) -> bool:
        refused = problem.refuted(kept) or not problem.question.forced <= kept
        if refused or kept in may_break:  # what was taken is not asked about again
            return False
        trial, may_break[kept] = judge(problem, kept, limit, "settle")
        return trial.met

    with suppress(Stop):
        _exchange(problem, prune(problem, held, again=True, meets=meets), meets)
    if problem.best is not None:
        broken = may_break.get(problem.best.kept, frozenset())
        problem.evaluator.search_on([s for s in problem.evaluator.searched if s not in broken])


def _exchange(problem: Problem, kept: Kept, meets: Callable[[Kept], bool]) -> None:
    """Put units in for which more can be cast, while that goes well.

    As many ops are run for that as in all that came before, and no more.
    """
    engine = problem.engine
    most = 2 * engine.executions
    misses = 0
    while True:
        for exchanged in islice(exchanges(problem, kept), _MISSES - misses):
            if engine.executions > most:
                return
            problem.extend(max(problem.remaining, len(exchanged)))
            if meets(exchanged):
                kept, misses = prune(problem, exchanged, again=True, meets=meets), 0
                break
            misses += 1
        else:
            return
