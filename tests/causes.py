"""Random small models with one planted cause each, and where it sits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

CAUSES = ("overflow", "underflow", "constant", "cancellation", "accumulation", "amplified")


@dataclass
class Planted:
    """A model, its samples, the cause planted in it, and the types of the ops that suffer."""

    model: torch.nn.Module
    samples: list[torch.Tensor]
    cause: str
    types: tuple[str, ...]


class Net(torch.nn.Module):
    def __init__(self, cause: str, random: np.random.Generator, width: int):
        super().__init__()
        self.cause = cause
        self.first = torch.nn.Linear(width, width)
        self.second = torch.nn.Linear(width, width)
        self.act = random.choice(["tanh", "silu", "none"])
        self.scale = float(random.uniform(400, 2000))
        self.tiny = float(10 ** random.uniform(-6, -5))
        self.offset = float(random.uniform(1000, 8000))
        self.rate = float(random.uniform(100, 400))
        self.step = float(random.uniform(1e-3, 3e-3))
        self.value = float(random.choice([-1e38, torch.finfo(torch.float32).min]))

    def filler(self, x: torch.Tensor) -> torch.Tensor:
        if self.act == "tanh":
            return torch.tanh(x)
        return torch.nn.functional.silu(x) if self.act == "silu" else x

    def planted(self, x: torch.Tensor) -> torch.Tensor:
        if self.cause == "overflow":
            return torch.sqrt((self.scale * x) ** 2 + 1.0) / self.scale
        if self.cause == "underflow":
            return (x * self.tiny) * (torch.cos(x) * self.tiny) / (self.tiny * self.tiny)
        if self.cause == "constant":
            # A mask that is 0 everywhere: finite in FP32, 0 * inf in FP16.
            return torch.softmax(x + (x > 1e4).float() * self.value, -1)
        if self.cause == "cancellation":
            return (x + self.offset) - self.offset
        if self.cause == "accumulation":
            state = torch.full_like(x, 8.0)
            for _ in range(24):
                state = state + self.step * (1.5 + torch.tanh(x))
            return state - 8.0
        return torch.sin(self.rate * (1.5 + x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.planted(self.filler(self.first(x))))


TYPES = {
    "overflow": ("mul", "pow", "square", "add", "sqrt"),
    "underflow": ("mul", "real_div"),
    "constant": ("mul",),
    "cancellation": ("sub", "add"),
    "accumulation": ("add",),
    "amplified": ("mul", "sin", "add", "silu", "tanh", "linear"),
}


def planted(seed: int) -> Planted:
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    cause = CAUSES[seed % len(CAUSES)]
    width = int(random.integers(4, 12))
    model = Net(cause, random, width).eval()
    generator = torch.Generator().manual_seed(seed)
    data = [torch.randn(2, width, generator=generator) for _ in range(4)]
    return Planted(model, data, cause, TYPES[cause])
