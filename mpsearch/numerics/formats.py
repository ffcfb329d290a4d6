"""FP16 as a format: what rounding to it keeps and loses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Format:
    """A binary floating-point format (IEEE 754-2019, section 3.3).

    Attributes
    ----------
    dtype
        What stores it.
    digits
        Significant bits, the implicit one included.
    least_exponent
        The exponent of the smallest normal number.
    largest
        The largest finite number.
    """

    dtype: torch.dtype
    digits: int
    least_exponent: int
    largest: float

    @property
    def smallest_normal(self) -> float:
        """Below it, digits are lost."""
        return 2.0**self.least_exponent

    @property
    def step(self) -> float:
        """The smallest number above 0, and the distance of numbers below the normal ones."""
        return 2.0 ** (self.least_exponent - self.digits + 1)

    @property
    def vanishes(self) -> float:
        """What is not larger rounds to 0."""
        return self.step / 2

    @property
    def overflows(self) -> float:
        """What is not smaller rounds to infinity: half a step beyond the largest number."""
        mantissa, exponent = math.frexp(self.largest)
        return math.ldexp(mantissa + 2.0 ** -(self.digits + 1), exponent)


FP16 = Format(torch.float16, 11, -14, 65504.0)


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
        out = torch.ldexp(torch.round(mantissa * 2**FP16.digits) / 2**FP16.digits, exponent)
        # What is not finite stays as it is, and what would round beyond FP32 as well.
        out = torch.where(torch.isfinite(out), out, x)
    if underflow:
        small = x.abs() < FP16.smallest_normal
        out = torch.where(small, torch.round(x / FP16.step) * FP16.step, out)
    if overflow:
        out = torch.where(
            x.abs() >= FP16.overflows, torch.copysign(torch.full_like(x, math.inf), x), out
        )
    return out


def widen(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.to(torch.float32) if x.dtype is torch.float16 else x
    return [widen(item) for item in x] if isinstance(x, list) else x
