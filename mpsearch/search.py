"""Runs a strategy on a problem, with its limits, and finds strategies by name."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points

from .errors import InputError
from .problem import Problem, Stop, Strategy, Unit
from .program import CandidateOp

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
    strategy: Strategy = known[name].load()
    return strategy


def units(ops: Sequence[CandidateOp], free: Sequence[int], by: str) -> list[Unit]:
    """What is decided: each free op, or the free ops of each layer.

    Raises
    ------
    InputError
        If ``by`` is neither ``op`` nor ``layer``.
    """
    if by == "op":
        return [Unit(ops[i].name, (i,)) for i in free]
    if by != "layer":
        raise InputError(f"granularity {by!r} is not known; choose op or layer")
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
    try:
        with _interruptible():
            strategy(problem)
    except Stop:
        return time.monotonic() <= problem.deadline
    except KeyboardInterrupt:
        problem.deadline = -math.inf
        return False
    return True


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let a second Ctrl-C through only after the best set so far could be written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
