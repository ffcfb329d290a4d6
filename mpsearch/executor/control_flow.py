"""MIL ops of the family ``control_flow`` that are functions of their inputs.

``cond`` and ``while_loop`` run blocks, not functions, and live in :mod:`.runtime`.
A MIL list is a Python list of tensors; writing to one makes a new list.
"""

from __future__ import annotations

import torch
from torch import Tensor

TensorList = list[Tensor]


def list_gather(ls: TensorList, indices: list[int]) -> Tensor:
    return torch.stack([ls[i] for i in indices])


def list_length(ls: TensorList) -> Tensor:
    return torch.tensor(len(ls), dtype=torch.int32)


def list_read(ls: TensorList, index: int) -> Tensor:
    return ls[index]


def list_scatter(ls: TensorList, indices: list[int], value: Tensor) -> TensorList:
    for i, row in zip(indices, value.unbind(0), strict=True):
        ls = list_write(ls, i, row)
    return ls


def list_write(ls: TensorList, index: int, value: Tensor) -> TensorList:
    grown = list(ls) + [torch.zeros_like(value)] * (index + 1 - len(ls))
    grown[index] = value
    return grown


def make_list(
    elem_shape: list[int],
    init_length: int = 1,
    dynamic_length: bool = True,
    dtype: str = "fp32",
) -> TensorList:
    kind = {"fp32": torch.float32, "fp16": torch.float16, "bool": torch.bool}.get(
        dtype, torch.int32
    )
    return [torch.zeros(elem_shape, dtype=kind) for _ in range(init_length)]


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond.to(torch.bool), a, b)
