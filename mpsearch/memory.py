"""What a file may ask of the memory, and handing freed memory back to the system."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping
from typing import Any

from .errors import InputError

#: What a few numbers in a file may ask for, in elements (1 GiB of FP32).
MOST_ELEMENTS = 1 << 28


def check_held(values: Mapping[str, Any], file: str) -> None:
    """That tensors of a file take no more than 1 GiB beyond what the file holds of them.

    With a stride of 0, a few bytes are a tensor of any size.

    Raises
    ------
    InputError
        If one does.
    """
    for name, value in values.items():
        made, held = value.nbytes, value.untyped_storage().nbytes()
        if made - held > 4 * MOST_ELEMENTS:
            raise InputError(
                f"{file}: {name!r} has shape {tuple(value.shape)}, which takes {made:,} bytes, of "
                f"which {held:,} are there; save a contiguous tensor"
            )


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):  # not glibc
        return None
    return trim


def give_back() -> None:
    """Return the free pages of the heap, where the C library can (glibc's ``malloc_trim``).

    Results of an evaluation are too small to be mapped one by one; without this, what a stage has
    freed stays with the process, broken up, while the next one asks for more.
    """
    trim = _trim()
    if trim is not None:
        trim(0)
