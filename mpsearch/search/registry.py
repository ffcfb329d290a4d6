"""Finds strategies by name, and runs one within the limits of a search."""

from __future__ import annotations

from importlib.metadata import entry_points

from ..ending import Stage, Stop
from ..errors import InputError
from ..options import STRATEGIES, unknown_strategy
from ..usercode import guarded
from .search import Search, Strategy


def find_strategy(strategy: str | Strategy) -> Strategy:
    """The strategy registered under a name in the entry-point group; a callable as it is.

    Raises
    ------
    InputError
        If there is none.
    """
    if not isinstance(strategy, str):
        if not callable(strategy):
            kind = type(strategy).__name__
            raise InputError(f"strategy is a {kind}; expected a name or a function of a Search")
        return strategy
    known = {e.name: e for e in entry_points(group=STRATEGIES)}
    if strategy not in known:
        raise InputError(unknown_strategy(strategy, sorted(known)))
    with guarded(f"strategy {strategy!r}: loading it"):
        found: Strategy = known[strategy].load()
    return found


def run(strategy: Strategy, search: Search) -> bool:
    """Run a strategy; False where the time or the user cut it short."""
    search.ending.stage = Stage.SEARCH
    try:
        with guarded("the strategy"):
            strategy(search)
    except Stop:
        return not search.ending.over
    return True
