"""T5: the residual stream itself passes 65504."""

import torch
import torch.nn.functional as F

SOURCE = "T5 in FP16 (transformers#9295)"
CAUSES = {"overflow"}
CULPRITS = {"add"}
BUDGET = 1e-2


class Layer(torch.nn.Module):
    """RMSNorm that divides by the maximum first (safe), then a feed-forward of large outputs."""

    def __init__(self, width: int):
        super().__init__()
        self.up = torch.nn.Linear(width, 2 * width)
        self.down = torch.nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x / x.abs().amax(-1, keepdim=True)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x + self.down(F.relu(self.up(y)))


class Stack(torch.nn.Module):
    def __init__(self, width: int = 32, layers: int = 6):
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer(width) for _ in range(layers))
        self.head = torch.nn.Linear(width, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x / x.abs().amax(-1, keepdim=True))


def build(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = Stack()
    with torch.no_grad():
        for layer in model.layers:
            layer.down.weight.mul_(2000.0)
            layer.down.bias.fill_(18000.0)
    return model


def samples(count: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 12, 32, generator=generator) for _ in range(count)]
