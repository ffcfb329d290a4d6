"""MIL ops of the family ``conv``. Each function is the op it is named after."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .padding import spatial_padding, zero_pad

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    rank = x.dim() - 2
    strides = strides or [1] * rank
    dilations = dilations or [1] * rank
    pads = spatial_padding(pad_type, pad, x.shape[2:], weight.shape[2:], strides, dilations)
    if all(before == after for before, after in pads):
        padding = [before for before, _ in pads]
    else:
        x, padding = zero_pad(x, pads), [0] * rank
    return _CONV[rank](x, weight, bias, strides, padding, dilations, groups)


def conv_quantized(
    x: Tensor,
    weight: Tensor,
    quantization_type: str,
    quant_scale: Tensor,
    quant_bias: Tensor,
    bias: Tensor | None = None,
    nbits: int = 8,
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """``conv`` with weights stored as integers: W = W_quantized * scale + bias."""
    if quantization_type != "linear":
        raise NotImplementedError("conv_quantized with a look-up table")
    shape = (-1,) + (1,) * (weight.dim() - 1)
    dense = weight.to(x.dtype) * quant_scale.reshape(shape) + quant_bias.reshape(shape)
    bias = None if bias is None else bias.to(x.dtype)
    return conv(x, dense, bias, strides, pad_type, pad, dilations, groups)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: list[int] | None = None,
    output_shape: list[int] | None = None,
    pad_type: str = "valid",
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """The full transposed convolution, cropped at both ends of every spatial axis.

    The output of a convolution does not determine the size of its input, so ``output_shape``
    decides where it is given; elements beyond the full result hold the bias alone.
    """
    rank = x.dim() - 2
    strides = strides or [1] * rank
    dilations = dilations or [1] * rank
    out = _CONV_TRANSPOSE[rank](x, weight, None, strides, 0, 0, groups, dilations)
    for axis in range(rank):
        full = out.shape[axis + 2]
        size = x.shape[axis + 2] * strides[axis] if pad_type.startswith("same") else None
        if output_shape is not None:
            size = output_shape[axis + 2]
        if pad_type == "custom" and pad is not None:
            before = pad[2 * axis]
            size = full - before - pad[2 * axis + 1] if size is None else size
        elif pad_type == "same_lower":
            before = (full - (size or full) + 1) // 2
        else:
            before = (full - (size or full)) // 2 if pad_type == "same" else 0
        size = full if size is None else size
        pads = [(0, 0)] * rank
        pads[axis] = (-before, size - full + before)
        out = zero_pad(out, pads)
    return out if bias is None else torch.add(out, bias.reshape((-1,) + (1,) * rank))
