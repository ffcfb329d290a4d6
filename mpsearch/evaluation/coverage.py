"""What samples say of inputs that nobody has seen.

The *coverage* of a set is the share of inputs on which it meets the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import special

#: Losses are taken for log-normal where they are positive; no loss counts for less than this share
#: of the worst. By logarithms, a metric that is 0 on some inputs would otherwise fear anything.
_LEAST = 1e-2


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


def tolerated(samples: int, chance: float) -> int:
    """How many of so many samples may break the budget where the next is to with this chance.

    The next one's rank among all is any of ``samples + 1``, equally likely, whatever their
    distribution (conformal prediction: Vovk, Gammerman and Shafer, 2005). None, where there are too
    few to tell.
    """
    return max(math.floor(chance * (samples + 1)) - 1, 0)


def expected(losses: Sequence[float], chance: float, student: bool = False) -> float:
    """What the next input's loss is expected to exceed with no more than this chance.

    Errors vary about as log-normal quantities do; losses in dB, negative, are logarithms already.
    ``student`` allows for how little these samples say of the spread (the prediction interval of a
    normal variable).
    """
    worst = max(losses, default=-math.inf)
    count = len(losses)
    if count < 2 or not all(map(math.isfinite, losses)) or (worst > 0 and min(losses) < 0):
        return worst
    positive = worst > 0
    values = [math.log(max(loss, _LEAST * worst)) if positive else loss for loss in losses]
    mean = sum(values) / count
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1))
    factor = special.ndtri(1 - chance)
    if student:
        factor = special.stdtrit(count - 1, 1 - chance) * math.sqrt(1 + 1 / count)
    beyond = mean + float(factor) * spread
    return max(worst, math.exp(min(beyond, 700.0)) if positive else beyond)
