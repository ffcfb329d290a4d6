"""Options that several commands share, checked before any work."""

from __future__ import annotations

import math
from typing import Any

from .errors import InputError


def number(value: Any, name: str) -> float:
    """A finite number.

    Raises
    ------
    InputError
        If it is none; a text, a path, a truth value and None are none.
    """
    try:
        if isinstance(value, (str, bytes, bool)):
            raise TypeError
        found = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        kind = type(value).__name__
        raise InputError(f"{name} is {value!r}, a {kind}; expected a number") from error
    if not math.isfinite(found):
        raise InputError(f"{name} is {found}, expected a finite number")
    return found


def positive(value: Any, name: str, unit: str = "a number") -> float:
    """A finite number above 0.

    Raises
    ------
    InputError
        If it is none.
    """
    found = number(value, name)
    if found <= 0:
        raise InputError(f"{name} is {found:g}, expected {unit} above 0")
    return found


def count(value: Any, name: str, least: int = 1, most: int = 1 << 40) -> int:
    """A whole number from ``least`` to ``most``.

    Raises
    ------
    InputError
        If it is none.
    """
    found = number(value, name)
    if found != int(found) or not least <= found <= most:
        limits = f"{least} or more" if most >= 1 << 40 else f"from {least} to {most}"
        raise InputError(f"{name} is {value}, expected a whole number, {limits}")
    return int(found)


def seed(value: Any) -> int:
    """A seed that torch, numpy and Optuna all take.

    Raises
    ------
    InputError
        If it is not a whole number from 0 to 2**32 - 1.
    """
    return count(value, "seed", 0, 2**32 - 1)


def budget(value: Any, larger_is_better: bool) -> float:
    """A budget: above 0, but for measures in dB, which may be negative.

    Raises
    ------
    InputError
        If it is not finite, or 0 or less where errors are positive.
    """
    return number(value, "budget") if larger_is_better else positive(value, "budget")
