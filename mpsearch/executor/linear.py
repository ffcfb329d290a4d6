"""MIL ops of the family ``linear``. Each function is the op it is named after."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def einsum(values: list[Tensor], equation: str) -> Tensor:
    return torch.einsum(equation, *values)


def _common(*values: Tensor) -> list[Tensor]:
    """Integers among floats become floats (mixed inputs, iOS17)."""
    if any(v.is_floating_point() for v in values):
        return [v if v.is_floating_point() else v.float() for v in values]
    return list(values)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x, weight = _common(x, weight)
    if not x.is_floating_point():
        product = torch.matmul(x, weight.T)
        return product if bias is None else product + bias
    return F.linear(x, weight, None if bias is None else bias.to(x.dtype))


def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    x, y = _common(x, y)
    x = x.transpose(-1, -2) if transpose_x and x.dim() > 1 else x
    y = y.transpose(-1, -2) if transpose_y and y.dim() > 1 else y
    return torch.matmul(x, y)
