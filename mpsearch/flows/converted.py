"""Runs precisions on a device: the pre-cast program is converted on, never PyTorch again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import torch
from torch import Tensor

from ..device.coreml import CoreML, Loaded
from ..evaluation.metrics import Outputs
from ..options import Execution
from ..package import emission
from ..package.verification import named
from ..program.precision import Precision
from ..source.prepare import Prepared


@contextmanager
def device_of(execution: Execution) -> Iterator[CoreML | None]:
    """The device that evaluates; None where mpsearch's own executor does.

    Raises
    ------
    InputError
        Off a Mac.
    """
    if execution.backend == "executor":
        yield None
        return
    with closing(CoreML(execution.compute_units)) as device:
        yield device


class Converted:
    """Computes outputs on a device, one package in its memory at a time.

    Parameters
    ----------
    prepared
        Whose program is converted.
    device
        Where it runs.
    """

    def __init__(self, prepared: Prepared, device: CoreML) -> None:
        self._prepared, self._device = prepared, device
        self._loaded: tuple[Precision, Loaded] | None = None

    def __call__(self, precision: Precision, sample: Mapping[str, Tensor]) -> Outputs:
        """The outputs of a precision for one sample, under the program's names."""
        if self._loaded is None or self._loaded[0] != precision:
            self._loaded = None
            names = [self._prepared.ops[i].name for i in precision]
            model = emission.convert(self._prepared.precast, emission.selector(names))
            self._loaded = precision, self._device.load(model)
        return predicted(self._loaded[1], sample, self._prepared.lowered.outputs)


def predicted(
    loaded: Loaded, sample: Mapping[str, Any], names: Collection[str]
) -> dict[str, Tensor]:
    """The outputs of a package for one sample, under ``names``."""
    wanted = loaded.inputs
    given = {name: value for name, value in sample.items() if name not in loaded.states}
    if set(wanted) != set(given):  # passes after the cast may rename inputs, not reorder them
        given = dict(zip(wanted, given.values(), strict=False))
    found = loaded.predict({name: given[name].cpu().numpy() for name in wanted})
    return named({name: torch.as_tensor(value) for name, value in found.items()}, names)
