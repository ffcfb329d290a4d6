"""Families of small models of which any number can be drawn: ``planted:SEED``, ``encoder:SEED``."""

from __future__ import annotations

import torch

from benchmarks.models import Encoder
from tests import planted


class Encoders(torch.nn.Module):
    """Four small encoders, averaged over tokens: nothing breaks, and every rounding counts.

    The larger what they are given (1, 3, 10 or 30 times, in turn by seed), the less they change it.
    """

    def __init__(self, seed: int, width: int = 32):
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = torch.nn.Sequential(*(Encoder(width, 2) for _ in range(4)))
        self.out = torch.nn.Linear(width, 8)
        self.scale = (1.0, 3.0, 10.0, 30.0)[seed % 4]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.blocks(self.scale * x).mean(1))


def drawn(name: str, seed: int, count: int) -> tuple[torch.nn.Module, float, list[torch.Tensor]]:
    """A model, its budget, and so many inputs of it.

    Inputs of an ``encoder`` differ in size, by a log-normal factor of spread 0.3.
    """
    family, number = name.split(":")
    generator = torch.Generator().manual_seed(1000 * int(number) + seed)
    if family == "planted":
        inputs = [torch.randn(1, 6, generator=generator) for _ in range(count)]
        return planted.Planted(int(number)), planted.budget(int(number)), inputs
    sizes = torch.exp(0.3 * torch.randn(count, generator=generator))
    inputs = [size * torch.randn(1, 10, 32, generator=generator) for size in sizes]
    return Encoders(int(number)).eval(), 1e-3, inputs
