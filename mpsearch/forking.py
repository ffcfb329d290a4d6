"""Work on many items in forked processes, which share all memory there is and change none of it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def each(work: Callable[[T], R], items: Sequence[T], jobs: int) -> list[R]:
    """What ``work`` gives for each item, in order, in so many processes, this one included.

    ``work`` is to change nothing that is asked for later: what it changes in another process is
    lost. What fails there, or is lost with its process, is done again here, where it raises.
    """
    if jobs < 2 or len(items) < 2:
        return [work(item) for item in items]
    context: Any = multiprocessing.get_context("fork")
    helpers = []
    for place in range(1, min(jobs, len(items))):
        pipe, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_work, args=(theirs, pipe, work, items[place::jobs]), daemon=True
        )
        process.start()
        theirs.close()
        helpers.append((place, pipe, process))
    try:
        found: dict[int, R] = {i: work(items[i]) for i in range(0, len(items), jobs)}
        for place, pipe, _ in helpers:
            with contextlib.suppress(EOFError, OSError):
                found.update(zip(range(place, len(items), jobs), pipe.recv(), strict=False))
    finally:
        for _, pipe, process in helpers:
            process.kill()
            process.join()
            pipe.close()
    return [found[i] if i in found else work(item) for i, item in enumerate(items)]


def settle(parents: Connection) -> None:
    """Make a process just forked a helper: signals, and the other end, are its parent's alone."""
    parents.close()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)  # the threads of the parent are not there any more


def _work(
    pipe: Connection, parents: Connection, work: Callable[[T], R], items: Sequence[T]
) -> None:
    settle(parents)
    done: list[R] = []
    with contextlib.suppress(BaseException):
        for item in items:
            done.append(work(item))
    with contextlib.suppress(OSError):
        pipe.send(done)
    os._exit(0)
