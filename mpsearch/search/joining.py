"""Searches on where samples join those that sets are judged on."""

from __future__ import annotations

from .conflicts import solve
from .refining import prune
from .search import Search, Trial


def search_on(search: Search) -> None:
    """Find a set that holds after more was asked for.

    Sets that held before are judged first, the cheapest first: what is found then is cheaper.

    Raises
    ------
    Stop
        If trials or time are used up.
    """
    trials = max(search.remaining, 2 * len(search.problem.units))
    search.allowed = max(search.allowed, len(search.trials) + trials)
    known = sorted(search.trials, key=lambda trial: search.problem.rank(trial.fp32))
    for trial in known:
        if not trial.offenders and search.judge(trial.fp32, "repair").met:
            break
    solve(search)
    if search.best is not None:
        prune(search, search.best.fp32)


def confirm(search: Search) -> None:
    """Judge the best set on the samples set aside, and search on while it fails on some.

    Raises
    ------
    Stop
        If trials or time are used up.
    """
    while search.best is not None and (failed := search.failing_aside(search.best.fp32)):
        search.restrict(samples=failed)
        search_on(search)


def confirmed(search: Search) -> Trial:
    """The best set that fails on no sample set aside, also where :func:`confirm` was cut short."""
    while search.best is not None and search.failing_aside(search.best.fp32):
        search.restrict(refused=search.best.fp32)
    return search.best or search.judge_all_units()
