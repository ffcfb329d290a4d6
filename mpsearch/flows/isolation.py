"""Isolates a call from what surrounds it: modes of torch and numpy, Optuna's log, other threads.

A training script calls mpsearch under ``torch.no_grad()`` or autocast, with numpy set to raise, or
from several threads. Nothing of that may change a result, and nothing of it may be changed.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import optuna
import torch

from ..errors import InputError

F = TypeVar("F", bound=Callable[..., Any])

_BUSY = threading.RLock()


@contextmanager
def neutral() -> Iterator[None]:
    """Default modes of torch and numpy within the block, for one thread at a time.

    coremltools converts with state of its own that is shared by all threads.

    Raises
    ------
    InputError
        If another thread is within such a block.
    """
    if not _BUSY.acquire(blocking=False):
        raise InputError(
            "mpsearch is at work in another thread of this process, and coremltools converts one "
            "model at a time; call it from one thread, or from several processes"
        )
    level = optuna.logging.get_verbosity()
    try:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            np.errstate(all="ignore"),
        ):
            yield
    finally:
        optuna.logging.set_verbosity(level)
        _BUSY.release()


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many threads for torch's ops within the block; None: as many as before."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


def isolated(function: F) -> F:
    """Run a public function under :func:`neutral`."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with neutral():
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]
