"""Padding arithmetic shared by convolution, pooling and ``pad``."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

Pads = list[tuple[int, int]]  # (before, after) of each spatial axis, first axis first


def spatial_padding(
    pad_type: str,
    pad: Sequence[int] | None,
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> Pads:
    """What ``pad_type`` means for spatial axes of ``size``, as MIL's conv and pools define it."""
    if pad_type == "custom" and pad is not None:
        return [(pad[2 * i], pad[2 * i + 1]) for i in range(len(size))]
    if pad_type not in ("same", "same_lower"):
        return [(0, 0)] * len(size)
    pads = []
    for d, k, s, dilation in zip(size, kernel, strides, dilations, strict=True):
        total = max((-(-d // s) - 1) * s + (k - 1) * dilation + 1 - d, 0)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if pad_type == "same" else (large, small))
    return pads


def zero_pad(x: Tensor, pads: Pads, value: float = 0.0) -> Tensor:
    """Pad the trailing axes of ``x`` with ``value``; negative numbers crop."""
    flat = [n for before_after in reversed(pads) for n in before_after]
    return F.pad(x, flat, value=value) if any(flat) else x
