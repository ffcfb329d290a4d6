"""Random small models with planted failures, from a seed."""

from __future__ import annotations

import numpy as np
import torch

KINDS = ("overflow", "underflow", "cancellation", "noise")


class Planted(torch.nn.Module):
    """A short chain of elementwise ops and products around one or two planted failures.

    At most 16 candidate ops. ``kind`` is the first failure; some models have a second one, of any
    kind but noise.
    """

    def __init__(self, seed: int):
        super().__init__()
        random = np.random.default_rng(seed)
        torch.manual_seed(seed)
        self.kind = KINDS[seed % len(KINDS)]
        self.first = torch.nn.Linear(6, 6)
        self.second = torch.nn.Linear(6, 6)
        self.shape = [int(i) for i in random.integers(0, 4, int(random.integers(1, 4)))]
        self.scale = float(random.uniform(300, 900))
        self.tiny = float(10 ** random.uniform(-6, -5))
        self.offset = float(random.uniform(500, 2000))
        self.other = KINDS[int(random.integers(0, 3))] if random.random() < 0.3 else ""

    def filler(self, x: torch.Tensor, which: int) -> torch.Tensor:
        if which == 0:
            return torch.tanh(x)
        if which == 1:
            return x + torch.sigmoid(x)
        if which == 2:
            return torch.nn.functional.silu(x)
        return x * 0.7

    def failure(self, x: torch.Tensor, kind: str) -> torch.Tensor:
        if kind == "overflow":
            return torch.sqrt((self.scale * x) ** 2 + 1.0) / self.scale
        if kind == "underflow":
            return (x * self.tiny) * (torch.cos(x) * self.tiny) / (self.tiny * self.tiny)
        if kind == "cancellation":
            return (x + self.offset) - self.offset
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.failure(self.first(x), self.kind)
        for which in self.shape[:2] if self.other else self.shape:
            x = self.filler(x, which)
        return self.second(self.failure(x, self.other))


def samples(seed: int, count: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 6, generator=generator) for _ in range(count)]


def budget(seed: int) -> float:
    """Tight for pure noise, wide where something is broken."""
    return 2.5e-4 if KINDS[seed % len(KINDS)] == "noise" else 5e-3
