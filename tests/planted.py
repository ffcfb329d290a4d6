"""Random small models with a planted failure each, from a seed."""

from __future__ import annotations

import numpy as np
import torch

KINDS = ("overflow", "underflow", "cancellation", "noise")


class Planted(torch.nn.Module):
    """A short chain of elementwise ops and products around one planted failure."""

    def __init__(self, seed: int):
        super().__init__()
        random = np.random.default_rng(seed)
        torch.manual_seed(seed)
        self.kind = KINDS[seed % len(KINDS)]
        self.first = torch.nn.Linear(6, 6)
        self.second = torch.nn.Linear(6, 6)
        self.shape = [int(i) for i in random.permutation(4)[: int(random.integers(1, 3))]]
        self.scale = float(random.uniform(300, 900))
        self.tiny = float(10 ** random.uniform(-6, -5))
        self.offset = float(random.uniform(500, 2000))

    def filler(self, x: torch.Tensor, which: int) -> torch.Tensor:
        if which == 0:
            return torch.tanh(x)
        if which == 1:
            return x + torch.sigmoid(x)
        if which == 2:
            return torch.nn.functional.silu(x)
        return x * 0.7

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for which in self.shape:
            x = self.filler(x, which)
        if self.kind == "overflow":
            x = torch.sqrt((self.scale * x) ** 2 + 1.0) / self.scale
        elif self.kind == "underflow":
            x = (x * self.tiny) * (torch.cos(x) * self.tiny) / (self.tiny * self.tiny)
        elif self.kind == "cancellation":
            x = (x + self.offset) - self.offset
        return self.second(x)


def samples(seed: int, count: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 6, generator=generator) for _ in range(count)]


def budget(seed: int) -> float:
    """Tight for pure noise, wide where something is broken."""
    return 2.5e-4 if KINDS[seed % len(KINDS)] == "noise" else 5e-3
