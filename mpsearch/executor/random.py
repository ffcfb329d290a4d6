"""MIL ops of the family ``random``.

They draw from the distribution that Core ML documents, not from its stream of numbers, which is
not public. A draw depends on ``seed`` and shape alone, so that two runs agree.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed if seed >= 0 else 0)


def random_bernoulli(shape: list[int], prob: float = 0.5, seed: int = -1) -> Tensor:
    return (torch.rand(shape, generator=_generator(seed)) < prob).float()


def random_categorical(x: Tensor, mode: str = "logits", size: int = 1, seed: int = -1) -> Tensor:
    weights = torch.softmax(x, -1) if mode == "logits" else x
    flat = weights.reshape(-1, x.shape[-1]).cpu()
    drawn = torch.multinomial(flat, size, replacement=True, generator=_generator(seed))
    return drawn.reshape(*x.shape[:-1], size).float().to(x.device)


def random_normal(
    shape: list[int], mean: float = 0.0, stddev: float = 1.0, seed: int = -1
) -> Tensor:
    return torch.randn(shape, generator=_generator(seed)) * stddev + mean


def random_uniform(shape: list[int], low: float = 0.0, high: float = 1.0, seed: int = -1) -> Tensor:
    return torch.rand(shape, generator=_generator(seed)) * (high - low) + low
