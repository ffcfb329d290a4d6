"""When a set holds: a function of evaluations, samples and a limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..evaluation.evaluator import Evaluation
from .samples import Sample

#: A sample is far over the budget from so many times it on, or so many decibels above it.
_FAR, _FAR_DB = 10.0, 20.0


@dataclass(frozen=True, slots=True)
class Criterion:
    """What a set must do.

    Attributes
    ----------
    limit
        The largest loss.
    harmless
        Names of the ops that may be infinite or NaN; None where that is left to the loss.
    tolerated
        How many perturbed samples may break the limit, unless they are far over it.
    """

    limit: float
    harmless: frozenset[str] | None = None
    tolerated: int = 0

    def harmful(self, evaluation: Evaluation) -> list[str]:
        """The ops whose infinite or NaN results do harm."""
        if self.harmless is None:
            return []
        return [name for name in evaluation.nonfinite if name not in self.harmless]

    def breaks(self, evaluation: Evaluation) -> bool:
        """Whether a set breaks one sample."""
        return evaluation.loss > self.limit or bool(self.harmful(evaluation))

    def ruins(self, evaluation: Evaluation) -> bool:
        """Whether a set breaks one sample by more than rounding does."""
        return far_over(evaluation.loss, self.limit) or bool(self.harmful(evaluation))

    def offenders(self, seen: Mapping[Sample, Evaluation]) -> list[Sample]:
        """The samples for which a set fails, the one that is easiest to hold first.

        Firm samples, and all that a set ruins; perturbed ones as well where it breaks more of
        them than it may. Empty for a set that holds on what was seen.
        """
        broken = [sample for sample, found in seen.items() if self.breaks(found)]
        firm = [s for s in broken if s.firm or self.ruins(seen[s])]
        loose = [s for s in broken if not s.firm and not self.ruins(seen[s])]
        found = firm + loose if len(loose) > self.tolerated else firm
        return sorted(found, key=lambda s: (not s.firm, seen[s].loss, s.index))


def far_over(loss: float, limit: float) -> bool:
    """Whether a loss is beyond ten times the budget, or 20 dB above it: not a matter of rounding.

    Losses in dB are negative.
    """
    return loss > (limit * _FAR if limit > 0 else limit + _FAR_DB)


def amplitude(loss: float, limit: float) -> float:
    """A loss as a multiple of something: decibels, which have negative limits, as amplitudes."""
    return loss if limit > 0 else float(10 ** (min(loss, 6000.0) / 20))


def tolerated(samples: int, tolerance: float) -> int:
    """How many of so many perturbed samples may break a limit.

    The rank of the next one among all is any of ``samples + 1``, equally likely, whatever their
    distribution (conformal prediction: Vovk, Gammerman and Shafer, 2005). None, where there are
    too few to tell.
    """
    return max(math.floor(tolerance * (samples + 1)) - 1, 0)
