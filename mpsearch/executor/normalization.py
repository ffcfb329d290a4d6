"""MIL ops of the family ``normalization``. Each function is the op it is named after."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    return F.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)


def instance_norm(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    if x[0, 0].numel() == 1:  # torch refuses a single spatial element: the mean is the value
        out = torch.zeros_like(x)
        return out if beta is None else out + beta.reshape((-1,) + (1,) * (x.dim() - 2))
    return F.instance_norm(x, weight=gamma, bias=beta, eps=epsilon)


def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Over the last three axes (C, H, W): x / sqrt(sum(x^2) + epsilon)."""
    axes = tuple(range(-min(3, x.dim()), 0))
    return x / torch.sqrt(torch.sum(x * x, dim=axes, keepdim=True) + epsilon)


def layer_norm(
    x: Tensor,
    axes: list[int] | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    dims = sorted(a % x.dim() for a in (range(x.dim()) if axes is None else axes))
    shape = [x.shape[d] for d in dims]
    if dims == list(range(x.dim() - len(dims), x.dim())):
        return F.layer_norm(x, shape, gamma, beta, epsilon)
    # torch normalises trailing axes only: bring the others there and back.
    rest = [d for d in range(x.dim()) if d not in dims]
    order = rest + dims
    back = [order.index(d) for d in range(x.dim())]
    return F.layer_norm(x.permute(order), shape, gamma, beta, epsilon).permute(back)


def local_response_norm(
    x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """x / (k + alpha / size * S)^beta, S the sum of squares over a window of channels.

    The window reaches (size - 1) // 2 channels to either side, so an even ``size`` sums over one
    channel fewer than it divides by.
    """
    half = (size - 1) // 2
    squares = F.pad((x * x).movedim(1, -1), (half, half)).unfold(-1, 2 * half + 1, 1).sum(-1)
    return x / torch.pow(k + alpha / size * squares.movedim(-1, 1), beta)
