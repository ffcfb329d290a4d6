"""A backend whose outputs are computed elsewhere: by Core ML, on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..executor.together import Look
from ..program.precision import Precision
from .incremental import Incremental
from .metrics import Outputs

#: Computes the outputs of a precision for one sample, both by name.
Compute = Callable[[Precision, Mapping[str, Tensor]], Outputs]


class Elsewhere(Incremental):
    """The executor, but that losses are of what someone else computes.

    Ranges, verdicts and the model of rounding are the executor's, who alone can be stepped into.

    Parameters
    ----------
    compute
        Gives the outputs.
    *args, **kwargs
        Those of :class:`mpsearch.evaluation.incremental.Incremental`.
    """

    def __init__(self, compute: Compute, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._compute = compute

    def outputs(
        self, precision: Precision, sample: int, profile: int = 0, *, remember: bool = True
    ) -> dict[str, Tensor]:
        """The outputs for one sample, by name, on the CPU."""
        self.ending.check()
        self.lost = []  # what is lost on the way is not seen there
        self.executions += len(self.nodes)
        found = self._compute(precision, self.sample(sample))
        return {name: torch.as_tensor(value) for name, value in found.items()}

    def several(
        self,
        precision: Precision,
        samples: Sequence[int],
        profile: int = 0,
        look: Look | None = None,
    ) -> Iterator[Outputs]:
        """The outputs for several samples in turn; with ``look`` the executor's."""
        if look is not None:
            yield from super().several(precision, samples, profile, look)
            return
        for sample in samples:
            yield self.outputs(precision, sample, profile)
