"""The flow of ``mpsearch probe``: asks a device how it computes in FP16."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from ..numerics.observed import Observation
from ..probing import probe as asking
from .isolation import neutral


class Device(Protocol):
    """What :class:`mpsearch.device.coreml.CoreML` offers, and anything else that predicts."""

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> Mapping[str, str]: ...

    def load(self, model: Any) -> Any:
        """Something with ``predict(inputs) -> outputs``, of arrays by name."""


def probe(
    device: Device, name: str | None = None, tell: Callable[[str], object] = lambda _: None
) -> Observation:
    """How a device computes in FP16, as a numerics profile has it.

    Some thirty tiny packages are run there: sums whose terms are lost in FP16 unless they are taken
    in one order, values around which results become infinite, subnormals, NaN, and composite ops.

    Parameters
    ----------
    device
        :class:`mpsearch.device.coreml.CoreML`, or anything that loads and predicts.
    name
        Of the profile; default: the device's.
    tell
        Called with what is being asked.

    Returns
    -------
    Observation
        ``to_json()`` of it is the file that ``--numerics`` takes.

    Raises
    ------
    InputError
        If the device cannot run the packages.
    """

    def predict(model: Any, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray(device.load(model).predict(inputs)["y"])

    with neutral():
        return asking.probe(predict, name or device.name, device.about, tell)
