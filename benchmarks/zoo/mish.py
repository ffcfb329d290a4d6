"""Mish is x * tanh(softplus(x)), and its softplus overflows on the Neural Engine."""

import torch
import torch.nn.functional as F

SOURCE = "ct#2359"
CAUSES = {"overflow"}
CULPRITS = {"softplus"}
BUDGET = 1e-2
NUMERICS = "ane"


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(16, 16)
        self.second = torch.nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x) * 8.0
        return self.second(F.mish(y))


def build(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return Net()


def samples(count: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(1, 8, 16, generator=generator) for _ in range(count)]
