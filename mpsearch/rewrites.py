"""PyTorch code that computes the same without leaving FP16's range.

Each function is a drop-in for what :mod:`mpsearch.explain.remedies` finds in a model: equal in
FP32, and within range in FP16 where the usual spelling is not. They are shown to the user as they
stand, so they are narrow enough for a terminal.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def scaled_norm(
    x: Tensor,
    dim: int | tuple[int, ...],
    eps: float,
    mean: bool = True,
) -> Tensor:
    """x * rsqrt(mean(x^2) + eps), or of the sum, x at most 1 when squared.

    The usual spelling overflows where x reaches 256 (executorch PR
    19523; ConvNeXt#80 for x minus its mean).
    """
    peak = x.abs().amax(dim, keepdim=True).clamp(min=1e-4)
    y = x / peak
    square = y * y
    if mean:
        square = square.mean(dim, keepdim=True)
    else:
        square = square.sum(dim, keepdim=True)
    # Not eps / peak: coremltools adds 1e-4 to what a number is divided by.
    least = torch.full_like(peak, eps**0.5) / peak
    return y * torch.rsqrt(square + least * least)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) without exp of a positive number.

    coremltools #2687, #2359.
    """
    return torch.relu(x) + torch.log(1 + torch.exp(-x.abs()))


def logsumexp(x: Tensor, dim: int) -> Tensor:
    """log(sum(exp(x))) with the largest x taken out (coremltools #2690)."""
    peak = x.amax(dim, keepdim=True)
    total = torch.exp(x - peak).sum(dim, keepdim=True)
    return (torch.log(total) + peak).squeeze(dim)


def log_softmax(x: Tensor, dim: int) -> Tensor:
    """log(softmax(x)) without softmax, whose small values vanish.

    coremltools #2728.
    """
    x = x - x.amax(dim, keepdim=True)
    return x - torch.log(torch.exp(x).sum(dim, keepdim=True))


def softmax(x: Tensor, dim: int | tuple[int, ...], eps: float = 0.0) -> Tensor:
    """exp(x) / (sum(exp(x)) + eps) with the largest x taken out.

    coreai-torch #104: exp leaves FP16's range at 11.1. (Without eps and
    along one axis, torch.softmax does the same.)
    """
    peak = x.amax(dim, keepdim=True)
    if eps:
        peak = peak.clamp(min=math.log(eps))
    power = torch.exp(x - peak)
    total = power.sum(dim, keepdim=True)
    if eps:
        total = total + torch.exp(math.log(eps) - peak)
    return power / total


def scatter_softmax(x: Tensor, index: Tensor, groups: int, dim: int, eps: float = 0.0) -> Tensor:
    """exp(x) / (its sum in each group + eps), the group's largest out.

    index: the group of each item along dim, or of each element of x.
    coremltools converts no scatter_reduce: a mask of groups by items
    finds the largest. Where that is too large, lay out each group as a
    row of its own and use softmax.
    """
    if index.dim() == 1:
        shape = [1] * x.dim()
        shape[dim] = -1
        index = index.reshape(shape).expand_as(x)
    number = torch.arange(groups).reshape([-1] + [1] * x.dim())
    inside = torch.where(index == number, x, -1e4)
    peaks = inside.amax(dim + 1).movedim(0, dim)
    peak = peaks.gather(dim, index)
    if eps:
        peak = peak.clamp(min=math.log(eps))
    power = torch.exp(x - peak)
    total = torch.zeros_like(peaks).scatter_add(dim, index, power)
    total = total.gather(dim, index)
    if eps:
        total = total + torch.exp(math.log(eps) - peak)
    return power / total


def attention_scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """q k^T scaled before the product (FluidInference mobius#42)."""
    root = scale**0.5
    return (q * root) @ (k * root).transpose(-1, -2)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, eps: float) -> Tensor:
    """sum(v k) q over sum(k) q, with means for sums (efficientvit#110).

    q, k: (..., channels, tokens), v: (..., channels of v, tokens).
    """
    tokens = k.shape[-1]
    k = k / tokens
    weights = k.sum(-1, keepdim=True).transpose(-1, -2) @ q
    return (v @ k.transpose(-1, -2)) @ q / (weights + eps / tokens)


def complex_divide(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
) -> tuple[Tensor, Tensor]:
    """(a + bi) / (c + di) with c and d at most 1 (coremltools #2164)."""
    peak = torch.maximum(c.abs(), d.abs()).clamp(min=1e-4)
    c, d = c / peak, d / peak
    size = c * c + d * d
    re, im = a * c + b * d, b * c - a * d
    return re / size / peak, im / size / peak


def log_power(x: Tensor, scale: float, eps: float) -> Tensor:
    """log(x^2 + eps) of samples as large as ``scale`` (SenseVoice).

    What is between the square and the logarithm must be linear: scale x
    at the front, and eps and the result as here.
    """
    y = x / scale
    power = y * y + eps / scale / scale
    return torch.log(power) + 2 * torch.log(torch.tensor(scale))


def finite_mask(mask: Tensor) -> Tensor:
    """An additive mask that FP16 can hold (coremltools #2669, UForm#50).

    Rows that are masked from end to end get other values than before.
    """
    return mask.clamp(min=-1e4)


def magnitude(
    x: Tensor,
    eps: float,
    keepdim: bool,
    dim: int | tuple[int, ...],
    mean: bool = False,
) -> Tensor:
    """sqrt(sum(x^2) + eps), or of the mean, x at most 1 when squared.

    x: the parts, complex ones stacked (hypot). x * x leaves FP16's range
    from 256 on, and below 2^-12.
    """
    root = eps**0.5
    peak = x.abs().amax(dim, keepdim=True).clamp(min=max(root, 1e-4))
    y = x / peak
    # Not root / peak: coremltools adds 1e-4 to what a number is divided by.
    least = torch.full_like(peak, root) / peak
    if mean:
        square = (y * y).mean(dim, keepdim=True)
    else:
        square = (y * y).sum(dim, keepdim=True)
    size = torch.sqrt(square + least * least) * peak
    return size if keepdim else size.squeeze(dim)


def centered(x: Tensor, dim: int | tuple[int, ...], by: Tensor | None = None) -> Tensor:
    """x less its mean (that of ``by``), before a difference of squares.

    aa + bb - 2ab and E[x^2] - E[x]^2 stay what they are where all
    values move alike. FP16 holds 3 digits: an offset takes them from
    the difference.
    """
    return x - (x if by is None else by).mean(dim, keepdim=True)


def wrapped_phase(x: Tensor, w: Tensor, x_unit: float, w_unit: float) -> Tensor:
    """x * w for sin and cos, less whole turns: 64 times as precise.

    FP16 rounds a phase of 1000 by up to 0.25. x to units of x_unit (64
    of them) times w to units of w_unit (32) is exact; the rest is small.
    x must be what FP16 holds: positions below 2048, pixels.
    """
    turns = w / (2 * math.pi)
    coarse = torch.round(turns / w_unit) * w_unit
    part = torch.round(x / x_unit) * x_unit
    phase = part * coarse
    rest = (x - part) * coarse + x * (turns - coarse)
    phase = phase - torch.round(phase) + rest - torch.round(rest)
    return 2 * math.pi * (phase - torch.round(phase))
