"""MIL ops of the family ``activation``. Each function is the op it is named after."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """Shape a (C,) parameter so that it broadcasts over axis 1 of x (N, C, ...)."""
    return parameter.reshape((-1,) + (1,) * (x.dim() - 2)) if parameter.dim() else parameter


def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(torch.where(x >= 0, x, alpha * x), max=beta)


def elu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x >= 0, x, alpha * torch.expm1(x))


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x >= 0, x, alpha * x)


def linear_activation(x: Tensor, alpha: float, beta: float = 0.0) -> Tensor:
    return alpha * x + beta


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x >= 0, x, _per_channel(alpha, x) * x)


def relu(x: Tensor) -> Tensor:
    return torch.relu(x)


def relu6(x: Tensor) -> Tensor:
    return torch.clamp(x, 0, 6)


def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha * torch.tanh(beta * x)


def sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


def silu(x: Tensor) -> Tensor:
    return F.silu(x)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    return F.softmax(x, dim=axis)


def softplus(x: Tensor) -> Tensor:
    # F.softplus returns x itself above its threshold; 88 is where exp overflows FP32.
    return F.softplus(x, threshold=88)


def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return _per_channel(alpha, x) * F.softplus(_per_channel(beta, x) * x, threshold=88)


def softsign(x: Tensor) -> Tensor:
    return x / (1 + torch.abs(x))


def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x < alpha, torch.zeros_like(x), x)  # NaN passes
