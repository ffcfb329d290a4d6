"""The ops that can be chosen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CandidateOp:
    """An op for which "FP32 or FP16?" makes a difference to the emitted program.

    Attributes
    ----------
    index
        Its place in the precision vector.
    name
        Its MIL name, as ``op_selector`` sees it.
    type
        Its MIL type.
    layer
        The PyTorch module it came from, as ``named_modules`` spells it; empty where unknown.
    output_shapes
        The shapes of its outputs; symbolic sizes are -1.
    weight_bytes
        Bytes of its FP32 constants.
    flops
        Floating-point operations, as :func:`mpsearch.program.flops.flops` counts them.
    line
        The line of Python that it came from, as ``file:line``; empty where unknown.
    """

    index: int
    name: str
    type: str
    layer: str
    output_shapes: tuple[tuple[int, ...], ...]
    weight_bytes: int
    flops: int
    line: str = ""
