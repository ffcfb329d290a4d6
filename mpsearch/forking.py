"""Work on many items in forked processes, which share all memory there is and change none of it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import psutil
import torch

#: Seconds after which it is looked whether a child process still runs.
_LOOK = 0.5

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
        for place, pipe, process in helpers:
            with contextlib.suppress(EOFError, OSError):
                given = received(pipe, process)
                found.update(zip(range(place, len(items), jobs), given, strict=False))
    finally:
        for _, pipe, process in helpers:
            process.kill()
            process.join()
            pipe.close()
    return [found[i] if i in found else work(item) for i, item in enumerate(items)]


def runs(process: Any) -> bool:
    """Whether a child process runs; one that was stopped (SIGSTOP) is ended."""
    if not process.is_alive():
        return False
    with contextlib.suppress(psutil.Error):
        if psutil.Process(process.pid).status() == psutil.STATUS_STOPPED:
            process.kill()
            process.join()
            return False
    return True


def received(pipe: Connection, process: Any) -> Any:
    """What a child process sends, as long as it runs.

    Raises
    ------
    EOFError, OSError
        If it ends, or is stopped, before it has sent anything.
    """
    while not pipe.poll(_LOOK):
        if not runs(process) and not pipe.poll():
            raise EOFError
    return pipe.recv()


def become_helper(parents: Connection) -> None:
    """Make a process just forked a helper: signals, and the other end, are its parent's alone."""
    parents.close()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)  # the threads of the parent are not there any more


def _work(
    pipe: Connection, parents: Connection, work: Callable[[T], R], items: Sequence[T]
) -> None:
    become_helper(parents)
    done: list[R] = []
    with contextlib.suppress(BaseException):
        for item in items:
            done.append(work(item))
    with contextlib.suppress(OSError):
        pipe.send(done)
    os._exit(0)
