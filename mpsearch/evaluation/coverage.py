"""What samples say of inputs that nobody has seen.

The *coverage* of a set is the share of inputs on which it meets the budget.
"""

from __future__ import annotations

import math

from scipy import special


def lower_bound(failures: int, samples: int, confidence: float) -> float:
    """The coverage that is at least there, with this confidence (Clopper and Pearson, 1934).

    ``failures`` of ``samples`` broke the budget; they must be samples that had no say in choosing
    the set.
    """
    if failures >= samples:
        return 0.0
    return float(special.betaincinv(samples - failures, failures + 1, 1 - confidence))


def promised(samples: int, coverage: float, confidence: float) -> float:
    """The coverage that can be promised where none of these samples breaks the budget.

    Never more than ``coverage``, which was asked for.
    """
    return min(coverage, (1 - confidence) ** (1 / samples)) if samples else 0.0


def allowed(samples: int, coverage: float, confidence: float) -> int:
    """How many of these samples may break the budget where this coverage is to be promised."""
    failures = 0
    while lower_bound(failures + 1, samples, confidence) >= coverage:
        failures += 1
    return failures


def needed(coverage: float, confidence: float) -> int:
    """How many samples without a failure it takes to promise this coverage."""
    return math.ceil(round(math.log(1 - confidence) / math.log(coverage), 9))


def words(coverage: float, confidence: float) -> str:
    """What a lower bound of the coverage says of the budget."""
    share = math.floor(100 * coverage)
    return f"at least {share}% of inputs like these meet it ({100 * confidence:g}% confidence)"
