"""MIL ops of the family ``elementwise_unary``. Each function is the op it is named after."""

from __future__ import annotations

import torch
from torch import Tensor

#: What MIL calls a dtype -> (torch storage dtype, smallest, largest); integers narrower than
#: 32 bits are stored as int32, since torch has few kernels for them, and wrapped on cast.
_INTEGERS = {
    "int8": (-(2**7), 2**7 - 1),
    "uint8": (0, 2**8 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "uint16": (0, 2**16 - 1),
}


def abs(x: Tensor) -> Tensor:
    return torch.abs(x)


def acos(x: Tensor) -> Tensor:
    return torch.acos(x)


def asin(x: Tensor) -> Tensor:
    return torch.asin(x)


def atan(x: Tensor) -> Tensor:
    return torch.atan(x)


def atanh(x: Tensor) -> Tensor:
    return torch.atanh(x)


def cast(x: Tensor, dtype: str) -> Tensor:
    """Convert to ``dtype``: floats to integers by truncation, out of range by wrapping."""
    if dtype == "fp16":
        return x.to(torch.float16)
    if dtype in ("fp32", "fp64"):
        return x.to(torch.float32)
    if dtype == "bool":
        return x.to(torch.bool)
    if dtype in _INTEGERS:
        low, high = _INTEGERS[dtype]
        return torch.remainder(x.to(torch.int64) - low, high - low + 1).add(low).to(torch.int32)
    return x.to(torch.int32)


def ceil(x: Tensor) -> Tensor:
    return torch.ceil(x)


def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(x, alpha, beta)


def cos(x: Tensor) -> Tensor:
    return torch.cos(x)


def cosh(x: Tensor) -> Tensor:
    return torch.cosh(x)


def erf(x: Tensor) -> Tensor:
    return torch.erf(x)


def exp(x: Tensor) -> Tensor:
    return torch.exp(x)


def exp2(x: Tensor) -> Tensor:
    return torch.exp2(x)


def floor(x: Tensor) -> Tensor:
    return torch.floor(x)


def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    return 1 / (x + epsilon)


def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    return torch.log(x + epsilon)


def logical_not(x: Tensor) -> Tensor:
    return torch.logical_not(x)


def round(x: Tensor) -> Tensor:
    return torch.round(x)


def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    return 1 / torch.sqrt(x + epsilon)


def sign(x: Tensor) -> Tensor:
    # torch.sign makes 0 of NaN, which would hide that something is broken.
    return torch.where(torch.isnan(x), x, torch.sign(x)) if x.is_floating_point() else x.sign()


def sin(x: Tensor) -> Tensor:
    return torch.sin(x)


def sinh(x: Tensor) -> Tensor:
    return torch.sinh(x)


def sqrt(x: Tensor) -> Tensor:
    return torch.sqrt(x)


def square(x: Tensor) -> Tensor:
    return x * x


def tan(x: Tensor) -> Tensor:
    return torch.tan(x)


def tanh(x: Tensor) -> Tensor:
    return torch.tanh(x)


def threshold(x: Tensor, alpha: float) -> Tensor:
    return torch.clamp(x, min=alpha)
