"""Runs a strategy on a problem, with its limits, and finds strategies by name."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import entry_points

from ..ending import Stage, Stop
from ..errors import InputError
from ..program.lowering import CandidateOp
from ..usercode import guarded
from .problem import Problem, Strategy, Unit

GROUP = "mpsearch.strategies"
#: More sets than this are not tried one by one to prove that none of them will do.
PROVABLE = 1 << 17


def find_strategy(name: str) -> Strategy:
    """The strategy registered under ``name`` in the entry-point group.

    Raises
    ------
    InputError
        If there is none.
    """
    known = {e.name: e for e in entry_points(group=GROUP)}
    if name not in known:
        raise InputError(
            f"strategy {name!r} is not known; installed are {', '.join(sorted(known)) or 'none'}"
        )
    with guarded(f"strategy {name!r}: loading it"):
        strategy: Strategy = known[name].load()
    return strategy


def check_granularity(by: str) -> None:
    """Fail early on an unknown granularity.

    Raises
    ------
    InputError
        If it is neither ``op`` nor ``layer``.
    """
    if by not in ("op", "layer"):
        raise InputError(f"granularity {by!r} is not known; choose op or layer")


def units(ops: Sequence[CandidateOp], free: Sequence[int], by: str) -> list[Unit]:
    """What is decided: each free op, or (``by="layer"``) the free ops of each layer."""
    if by == "op":
        return [Unit(ops[i].name, (i,)) for i in free]
    layers: dict[str, list[int]] = {}
    for i in free:
        layers.setdefault(ops[i].layer or ops[i].name, []).append(i)
    return [Unit(name, tuple(members)) for name, members in layers.items()]


def proving(strategy: Strategy) -> Strategy:
    """The strategy, and then every set cheaper than what it found."""

    def search(problem: Problem) -> None:
        # Stop is passed over: a proof is not bound by the trials.
        with suppress(Stop):
            strategy(problem)
        problem.proven = problem.prove(PROVABLE)

    return search


def run(strategy: Strategy, problem: Problem) -> bool:
    """Run a strategy; False where the time or the user cut it short."""
    problem.ending.stage = Stage.SEARCH
    try:
        with guarded("the strategy"):
            strategy(problem)
    except Stop:
        return not problem.ending.over
    return True
