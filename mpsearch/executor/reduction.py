"""MIL ops of the family ``reduction``. Each function is the op it is named after."""

from __future__ import annotations

import torch
from torch import Tensor


def _dims(x: Tensor, axes: list[int] | None) -> list[int]:
    return list(range(x.dim())) if axes is None else list(axes)


def reduce_argmax(
    x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
) -> Tensor:
    return torch.argmax(x, dim=axis, keepdim=keep_dims).to(torch.int32)


def reduce_argmin(
    x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32"
) -> Tensor:
    return torch.argmin(x, dim=axis, keepdim=keep_dims).to(torch.int32)


def reduce_l1_norm(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return reduce_sum(torch.abs(x), axes, keep_dims)


def reduce_l2_norm(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    total = reduce_sum(x * x, axes, keep_dims)
    return torch.sqrt(total).to(x.dtype)


def reduce_log_sum(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return torch.log(reduce_sum(x, axes, keep_dims)).to(x.dtype)


def reduce_log_sum_exp(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    values = x if x.is_floating_point() else x.float()
    return torch.logsumexp(values, dim=_dims(x, axes), keepdim=keep_dims).to(x.dtype)


def reduce_max(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return torch.amax(x, dim=_dims(x, axes), keepdim=keep_dims)


def reduce_mean(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    values = x if x.is_floating_point() else x.float()
    return torch.mean(values, dim=_dims(x, axes), keepdim=keep_dims).to(x.dtype)


def reduce_min(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return torch.amin(x, dim=_dims(x, axes), keepdim=keep_dims)


def reduce_prod(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    for dim in sorted((d % x.dim() for d in _dims(x, axes)), reverse=True):
        x = torch.prod(x, dim=dim, keepdim=keep_dims).to(x.dtype)
    return x


def reduce_sum(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return torch.sum(x, dim=_dims(x, axes), keepdim=keep_dims).to(x.dtype)


def reduce_sum_square(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
    return reduce_sum(x * x, axes, keep_dims)
