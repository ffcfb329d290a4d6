"""FP16 as a format: what rounding to it keeps and loses."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def narrow(x: Any) -> Any:
    """Round a float tensor, or each of a list of them, to FP16; others pass."""
    if isinstance(x, Tensor):
        return x.to(torch.float16) if x.dtype is torch.float32 else x
    return [narrow(item) for item in x] if isinstance(x, list) else x


def rounded(
    x: Tensor, digits: bool = True, overflow: bool = True, underflow: bool = True
) -> Tensor:
    """``x`` with only some of what rounding to FP16 loses, in FP32 storage.

    ``digits`` keeps 11 significant bits, at any magnitude; ``overflow`` turns what rounds beyond
    65504 into infinity; ``underflow`` rounds what is below 2**-14 to multiples of 2**-24. With all
    three, the result is that of :func:`narrow`.
    """
    out = x.float()
    if digits:
        mantissa, exponent = torch.frexp(out)
        out = torch.ldexp(torch.round(mantissa * 2**11) / 2**11, exponent)
        # What is not finite stays as it is, and what would round beyond FP32 as well.
        out = torch.where(torch.isfinite(out), out, x)
    if underflow:
        small = x.abs() < 2.0**-14
        out = torch.where(small, torch.round(x / 2.0**-24) * 2.0**-24, out)
    if overflow:
        out = torch.where(x.abs() >= 65520.0, torch.copysign(torch.full_like(x, math.inf), x), out)
    return out


def widen(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.to(torch.float32) if x.dtype is torch.float16 else x
    return [widen(item) for item in x] if isinstance(x, list) else x
