"""The process of a command: its streams, its environment, and how Ctrl-C ends it.

Before a search has begun, and after it has ended, Ctrl-C ends the process at once. An exception
does not while libraries are loaded and models are converted: native code drops it, or turns it into
an error of its own. Nothing is imported here that takes time, so that signals are listened to from
the first instruction on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.abc import MetaPathFinder
from typing import Any

INTERRUPTED = 130
#: What asks a process to end, as far as the system knows it.
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
#: What is to be done before the process ends, the last first.
_cleanups: list[Callable[[], None]] = []
#: What libraries read when they are loaded and fail at where it makes no sense to them: numpy's
#: f2py and matplotlib. Neither matters to what a command writes.
_UNREAD = ("MPLBACKEND", "SOURCE_DATE_EPOCH")
#: What coremltools looks for at import.
_FRONTENDS = frozenset(["libsvm", "sklearn", "tensorflow", "transformers", "xgboost"])


def clean_environment() -> None:
    """Take out variables that can only make libraries fail to load."""
    for name in _UNREAD:
        os.environ.pop(name, None)


def skip_frontends() -> None:
    """Have coremltools do without the libraries whose models mpsearch does not take.

    It imports each that is installed, only to know that it is: that takes longer than torch does.
    """
    sys.meta_path.insert(0, _Frontends())


class _Frontends(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Raise where coremltools looks for one of them."""
        asking = sys.modules.get("coremltools._deps")
        looking = getattr(getattr(asking, "__spec__", None), "_initializing", False)
        if looking and fullname in _FRONTENDS:
            raise ModuleNotFoundError(f"{fullname} is left out", name=fullname)


def open_streams() -> None:
    """Give closed standard streams a place to go, before files that are opened take their place."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - for good


def listen() -> None:
    """End the process on SIGINT, SIGTERM and SIGHUP; those that are ignored stay so (nohup).

    Only in the main thread, where Python delivers signals.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    process = os.getpid()

    def leave(number: int, frame: Any) -> None:
        if os.getpid() != process:  # a fork, which its parent ends
            os._exit(INTERRUPTED)
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        for cleanup in reversed(_cleanups):
            with suppress(Exception):
                cleanup()
        with suppress(OSError):  # stderr may be closed
            os.write(2, b"interrupted: before anything was found\n")
        os._exit(INTERRUPTED)

    for number in _SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, leave)


@contextmanager
def cleaned(cleanup: Callable[[], None]) -> Iterator[None]:
    """Call ``cleanup`` at the end of the block, and where the process ends within it."""
    _cleanups.append(cleanup)
    try:
        yield
    finally:
        _cleanups.remove(cleanup)
        cleanup()


def remove_temporary() -> None:
    """End child processes and remove temporary folders, as far as there are any."""
    if "multiprocessing" in sys.modules:
        import multiprocessing

        for child in multiprocessing.active_children():
            child.kill()
    from ..temporary import remove_held

    remove_held()


_cleanups.append(remove_temporary)
