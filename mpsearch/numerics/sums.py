"""Sums by FP16 additions, in blocks that fit the cache.

The addends of a sum lie along the first axis, so that one addition is one operation on a block of
results. A block holds the results of some rows alone: memory beyond the operands and the results
does not grow with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from . import orders

#: Elements of a block: at 2 bytes each, it and an addend fit the second-level cache.
_BLOCK = 1 << 15
#: With so few results, numpy adds up an axis sooner than torch begins an operation for each step.
_FEW = 128
_UFUNCS: dict[Callable[..., Tensor], np.ufunc] = {torch.add: np.add, torch.mul: np.multiply}


def rows_at_once(width: int) -> int:
    """How many rows of so many results make a block."""
    return max(_BLOCK // max(width, 1), 1)


def products(a: Tensor, b: Tensor, fused: bool) -> Iterator[Tensor]:
    """The products of two FP16 tensors, some steps along the first axis at once.

    Parameters
    ----------
    a, b
        (K, ...) each, contiguous and of as many axes, of shapes that broadcast.
    fused
        Whether products stay unrounded, in FP32, as fused multiply-add has them.
    """
    steps = rows_at_once(math.prod(map(max, a.shape[1:], b.shape[1:])))
    for start in range(0, max(len(a), 1), steps):
        some = slice(start, start + steps)
        yield a[some].float() * b[some].float() if fused else a[some] * b[some]


def summed(terms: Iterable[Tensor], order: str) -> Tensor:
    """A sum in FP16, one addition after the other.

    Parameters
    ----------
    terms
        (K, ...) each: addends along the first axis, in FP16, or in FP32 where they are unrounded.
        They are overwritten.
    order
        One of :data:`mpsearch.numerics.orders.ORDERS`.

    Returns
    -------
    Tensor
        (...), in FP16.
    """
    blocks = iter(terms)
    first = next(blocks)
    if not len(first):
        return first.new_zeros(first.shape[1:], dtype=torch.float16)
    few = order == "sequential" and first.dtype is torch.float16
    if few and first[0].numel() <= _FEW and first.device.type == "cpu":
        total = _last(first)
        for block in blocks:
            total = _last(torch.cat([total[None], block]))
        return total
    addends = (term for block in _chained(first, blocks) for term in block.unbind(0))
    return orders.order(order)(addends, _add).half()


def _last(block: Tensor) -> Tensor:
    return accumulated(block, torch.add)[-1]


def _chained(first: Tensor, rest: Iterator[Tensor]) -> Iterator[Tensor]:
    yield first
    yield from rest


def _add(a: Tensor, b: Tensor) -> Tensor:
    """The sum of two addends; the first, which nothing needs any more, holds it where it can."""
    if a.dtype is b.dtype is torch.float16:
        return a.add_(b)
    return (a.float() + b.float()).half()


def accumulated(x: Tensor, step: Callable[..., Tensor]) -> Tensor:
    """What ``step`` makes of the elements along the first axis so far, rounded after each.

    ``x`` is (K, ...) in FP16, with K of 1 or more; ``step`` is ``torch.add`` or ``torch.mul``.
    """
    if x[0].numel() <= _FEW and x.device.type == "cpu":
        with np.errstate(all="ignore"):
            return torch.from_numpy(_UFUNCS[step].accumulate(x.numpy(), axis=0))
    out = torch.empty_like(x)
    out[0] = x[0]
    for k in range(1, len(x)):
        step(out[k - 1], x[k], out=out[k])
    return out
