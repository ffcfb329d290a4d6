"""Keeps the terminal for results and messages: native libraries print as they like."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: File descriptors of stdout and stderr.
STDOUT, STDERR = 1, 2


@contextmanager
def nothing_printed(*numbers: int) -> Iterator[None]:
    """Send what is printed within the block nowhere, native code's text included.

    ``numbers`` are file descriptors. They are the process's, for all threads: put this around
    short calls.
    """
    saved: dict[int, int] = {}
    _flush()
    for number in numbers:
        with suppress(OSError):  # it is closed
            saved[number] = os.dup(number)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in saved:
        os.dup2(nowhere, number)
    os.close(nowhere)
    try:
        yield
    finally:
        _flush()
        for number, before in saved.items():
            os.dup2(before, number)
            os.close(before)


def _flush() -> None:
    """Write out what Python and C hold back."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).fflush(None)
