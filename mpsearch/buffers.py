"""Memory for tensors that outlive the call in which they are made.

A tensor that is made under ``torch.inference_mode`` cannot be written to outside of it. Whatever is
written to later is made here, outside of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def empty(
    shape: int | tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Tensor:
    """An uninitialized tensor that can be written to in any mode."""
    with torch.inference_mode(False):
        return torch.empty(shape, dtype=dtype, device=device)


#: Where torch's allocator on the CPU begins tensors, in bytes.
LINE = 64


def aligned(value: Tensor) -> Tensor:
    """``value``, contiguous and where a tensor of its own would begin.

    Kernels add in another order where their operands lie otherwise in memory.
    """
    value = value.contiguous()
    return value if value.data_ptr() % LINE == 0 else value.clone()


def placed_as(value: Tensor, other: Tensor) -> Tensor:
    """``value`` with its strides, as far from the beginning of a line as ``other``."""
    offset = other.data_ptr() % LINE
    if value.data_ptr() % LINE == offset or not value.numel():
        return value
    reach = sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True)) + 1
    start = offset // value.element_size()
    memory = empty(start + reach, value.dtype, value.device)
    return memory.as_strided(value.shape, value.stride(), start).copy_(value)


def same(one: Any, other: Any) -> bool:
    """Whether tensors, or what holds them in the same way, are the same to the bit."""
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(
        a.dtype is b.dtype and a.shape == b.shape and np.array_equal(_bytes(a), _bytes(b))
        if isinstance(a, Tensor)
        else a == b
        for a, b in pairs
    )


def _bytes(value: Tensor) -> np.ndarray:
    return value.reshape(-1).view(torch.uint8).cpu().numpy()


class Scratch:
    """FP32 memory that every call uses again.

    Memory that is touched for the first time costs as much as a conversion that fills it.
    """

    def __init__(self) -> None:
        self._memory = empty(0)

    def copied(self, value: Tensor) -> Tensor:
        """``value`` in FP32, of its shape and on its device; the next call overwrites it."""
        if self._memory.numel() < value.numel() or self._memory.device != value.device:
            self._memory = empty(value.numel(), device=value.device)
        return self._memory[: value.numel()].view(value.shape).copy_(value)

    def release(self) -> None:
        """Give the memory back."""
        self._memory = empty(0)
