"""The samples of a search: those that sets are judged on, and those set aside."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum


class Kind(Enum):
    """Where a sample comes from.

    Held-out samples are promoted to the search where a set fails on them.
    """

    CALIBRATION = "calibration"
    PERTURBED = "perturbed"
    HELDOUT = "held-out"


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample that sets are judged on.

    Attributes
    ----------
    index
        Its place in the evaluator.
    kind
        Where it comes from.
    number
        Its place among all samples that were given; of a perturbed one, among those of its kind.
    """

    index: int
    kind: Kind
    number: int

    @property
    def firm(self) -> bool:
        """Whether every set must hold on it; of the others a share may break the budget."""
        return self.kind is not Kind.PERTURBED

    def __str__(self) -> str:
        return f"{self.kind.value} {self.number}"


@dataclass
class Samples:
    """The samples of a search.

    Attributes
    ----------
    judged
        Those that sets are judged on.
    aside
        Those that only what a search ends with is run on; where it fails, they join the others.
    """

    judged: list[Sample]
    aside: list[Sample] = field(default_factory=list)

    def __iter__(self) -> Iterator[Sample]:
        """All, in the order of the evaluator."""
        return iter(sorted([*self.judged, *self.aside], key=lambda sample: sample.index))

    def set_aside(self, losses: Mapping[Sample, float]) -> None:
        """Set all aside but the given sample of the largest loss."""
        hardest = hardest_first((s for s in self if s.firm), losses)[0]
        self.judged, self.aside = [hardest], [s for s in self if s != hardest]

    def join(self, samples: Iterable[Sample]) -> None:
        """Judge sets on these as well."""
        joining = [sample for sample in samples if sample not in self.judged]
        self.judged += joining
        self.aside = [sample for sample in self.aside if sample not in joining]


def hardest_first(samples: Iterable[Sample], losses: Mapping[Sample, float]) -> list[Sample]:
    """Samples in the order of their last losses, so that a set that fails is refused early."""
    return sorted(samples, key=lambda s: (-losses.get(s, -math.inf), s.index))
