"""What evaluates a precision: the executor here, a device where there is one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from ..program.precision import Precision
from .metrics import Outputs


class Backend(Protocol):
    """What every backend can do: outputs for a precision.

    Attributes
    ----------
    candidates
        How many ops can be chosen.
    samples, profiles
        How many inputs there are, and how many ways in which FP16 may compute.
    executions
        How many ops were run so far.
    """

    candidates: int
    samples: int
    profiles: int
    executions: int

    def outputs(
        self, precision: Precision, sample: int, profile: int = 0, *, remember: bool = True
    ) -> Outputs:
        """The outputs for one sample, by name, on the CPU.

        ``remember`` says whether results on the way are worth keeping for the next precision.

        Raises
        ------
        Stop
            If the run is to end.
        """
        ...

    def several(
        self, precision: Precision, samples: Sequence[int], profile: int = 0
    ) -> Iterator[Outputs]:
        """The outputs for several samples in turn, at once where that is faster.

        Nothing on the way is remembered.

        Raises
        ------
        Stop
            If the run is to end.
        """
        ...

    def add(self, sample: Mapping[str, Any]) -> int:
        """Take in one more sample; its index."""
        ...
