"""MIL ops of the family ``pool``. Each function is the op it is named after."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .padding import Pads, spatial_padding, zero_pad

_AVG = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _pads(
    x: Tensor,
    kernel: list[int],
    strides: list[int],
    pad_type: str,
    pad: list[int] | None,
    ceil_mode: bool,
) -> tuple[Pads, Pads, list[int]]:
    """The padding asked for, the extra that makes a last partial window whole, and the kernel.

    A kernel that is larger than all there is has one window, and is cut to it: transformers'
    EfficientNet averages what is left of an image by a kernel of its width in channels.
    """
    rank = len(kernel)
    kernel = list(kernel)
    pads = spatial_padding(pad_type, pad, x.shape[2:], kernel, strides, [1] * rank)
    extra = []
    for axis, (before, after) in enumerate(pads):
        span = x.shape[axis + 2] + before + after - kernel[axis]
        windows = span // strides[axis] + 1
        # A last window counts only if it starts inside the input or its leading padding,
        # as in torch and in coremltools' shape inference.
        if (
            ceil_mode
            and span % strides[axis]
            and windows * strides[axis] < x.shape[axis + 2] + before
        ):
            windows += 1
        missing = max(0, (windows - 1) * strides[axis] - span)
        if windows == 1:
            kernel[axis] -= missing
            missing = 0
        extra.append((0, missing))
    return pads, extra, kernel


def avg_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str = "valid",
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    strides = strides or [1] * len(kernel_sizes)
    pads, extra, kernel = _pads(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    pool = _AVG[len(kernel_sizes)]
    out = pool(zero_pad(zero_pad(x, pads), extra), kernel, strides)
    if any(after for _, after in extra) or (exclude_padding_from_average and any(map(any, pads))):
        counted = torch.ones_like(x[:1, :1])
        counted = zero_pad(counted, pads, 0.0 if exclude_padding_from_average else 1.0)
        out = out / pool(zero_pad(counted, extra), kernel, strides)
    return out


def l2_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str = "valid",
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    strides = strides or [1] * len(kernel_sizes)
    pads, extra, kernel = _pads(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    mean = _AVG[len(kernel_sizes)](zero_pad(zero_pad(x * x, pads), extra), kernel, strides)
    return torch.sqrt(mean * math.prod(kernel))


def max_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str = "valid",
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    strides = strides or [1] * len(kernel_sizes)
    pads, extra, kernel = _pads(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    padded = zero_pad(zero_pad(x, pads, -math.inf), extra, -math.inf)
    return _MAX[len(kernel_sizes)](padded, kernel, strides)
