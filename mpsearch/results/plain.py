"""Values as JSON holds them."""

from __future__ import annotations

import math


def number(value: float | None) -> float | None:
    """A number as JSON can hold it: None for infinite."""
    return None if value is None or not math.isfinite(value) else float(value)


def share(value: float) -> str:
    """A share as percents; none and all only where it is so."""
    if 0 < value < 1e-4:
        return "under 0.01%"
    said = f"{100 * value:.3g}%"
    return "over 99.9%" if said == "100%" and value < 1 else said
