"""Values as JSON holds them."""

from __future__ import annotations

import math


def number(value: float | None) -> float | None:
    """A number as JSON can hold it: None for infinite."""
    return None if value is None or not math.isfinite(value) else float(value)
