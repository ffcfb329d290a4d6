"""What ``verify`` answers."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from .answer import Answer


class OutputSeen(msgspec.Struct, frozen=True):
    """An output on a device.

    Attributes
    ----------
    name
        Of the output.
    error
        Against the PyTorch model, the worst sample; None without one.
    apart
        Relative L2 distance from what mpsearch's executor gives, the worst sample.
    """

    name: str
    error: float | None
    apart: float


class OpOnDevice(msgspec.Struct, frozen=True):
    """Where an op runs.

    Attributes
    ----------
    name, type
        Of its first output, and of the op.
    device
        ``CPU``, ``GPU`` or ``Neural Engine``, which Core ML prefers for it; empty where unknown.
    milliseconds
        Its share of a prediction, as Core ML estimates it; None where it does not.
    """

    name: str
    type: str
    device: str
    milliseconds: float | None


class Verified(Answer, frozen=True, kw_only=True, dict=True):
    """A package as a device runs it.

    Attributes
    ----------
    holds
        Whether the error is within the budget; None without the model.
    error
        On the device, against the PyTorch model; None without it.
    promised, budget, metric
        What the result says of the package.
    simulated
        What mpsearch's executor gives for the package on the same samples; None without the model.
    device
        What ran it.
    samples
        How many inputs there were.
    outputs
        Each output by itself.
    load_milliseconds, predict_milliseconds
        The median of loading, and of a prediction.
    ops
        Each op, the dearest first.
    parted
        Ops at which the package parts from the same one in FP32 on the CPU: what they read agrees,
        and what they give is further apart than the budget. None where that was not looked at.
    """

    ERRORS: ClassVar[tuple[str, ...]] = ("error", "promised", "simulated")

    holds: bool | None
    error: float | None
    promised: float | None
    simulated: float | None
    budget: float
    metric: str
    device: dict[str, str]
    samples: int
    outputs: tuple[OutputSeen, ...] = ()
    load_milliseconds: float | None = None
    predict_milliseconds: float | None = None
    ops: tuple[OpOnDevice, ...] = ()
    parted: tuple[str, ...] | None = None
