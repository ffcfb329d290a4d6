"""MIL ops of the family ``quantization_ops`` (iOS17). Each function is the op it is named after."""

from __future__ import annotations

import torch
from torch import Tensor

_RANGE = {"int8": (-128, 127), "uint8": (0, 255)}


def _along(parameter: Tensor, x: Tensor, axis: int | None) -> Tensor:
    if axis is None or parameter.dim() == 0:
        return parameter
    shape = [1] * x.dim()
    shape[axis] = -1
    return parameter.reshape(shape)


def dequantize(
    input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    x = input.to(scale.dtype)
    if zero_point is not None:
        x = x - _along(zero_point, x, axis).to(x.dtype)
    return x * _along(scale, x, axis)


def quantize(
    input: Tensor,
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """clip(round(input / scale) + zero_point) to the range of ``output_dtype``."""
    x = torch.round(input / _along(scale, input, axis))
    if zero_point is not None:
        x = x + _along(zero_point, input, axis).to(x.dtype)
    return torch.clamp(x, *_RANGE[output_dtype]).to(torch.int32)
