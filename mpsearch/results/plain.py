"""Values as JSON holds them, and as people read them."""

from __future__ import annotations

import math

from ..options import IN_DB


def number(value: float | None) -> float | None:
    """A number as JSON can hold it: None for infinite."""
    return None if value is None or not math.isfinite(value) else float(value)


def share(value: float) -> str:
    """A share as percents; none and all only where it is so."""
    if 0 < value < 1e-4:
        return "under 0.01%"
    said = f"{100 * value:.3g}%"
    return "over 99.9%" if said == "100%" and value < 1 else said


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def counted(number: int, noun: str) -> str:
    """So many of something: 1 cast, 2 casts."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def error_of(value: float | None, metric: str) -> str:
    """An error in three digits; what JSON holds as null is infinite, and in dB below all."""
    if value is None:
        return "-inf" if metric in IN_DB else "inf"
    return f"{value:.3g}"


def in_metric(amplitude: float, metric: str) -> float:
    """An error in a metric's own terms: where it is in dB, of an amplitude."""
    if metric not in IN_DB:
        return amplitude
    return -20 * math.log10(amplitude) if amplitude > 0 else math.inf
