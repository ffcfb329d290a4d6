"""ConvNeXt's channels-first LayerNorm: (x - u)^2 with |x - u| > 256."""

import torch
import torch.nn.functional as F

SOURCE = "ConvNeXt#80"
CAUSES = {"overflow"}
CULPRITS = {"pow", "square", "mul", "reduce_mean"}
BUDGET = 1e-2


class LayerNorm(torch.nn.Module):
    """Over the channels of (N, C, H, W), written out as ConvNeXt has it."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(channels))
        self.bias = torch.nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNeXt(torch.nn.Module):
    def __init__(self, channels: int = 16, blocks: int = 3):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, channels, 4, 4)
        self.norms = torch.nn.ModuleList(LayerNorm(channels) for _ in range(blocks))
        self.depth = torch.nn.ModuleList(
            torch.nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
            for _ in range(blocks)
        )
        self.up = torch.nn.ModuleList(
            torch.nn.Conv2d(channels, 2 * channels, 1) for _ in range(blocks)
        )
        self.down = torch.nn.ModuleList(
            torch.nn.Conv2d(2 * channels, channels, 1) for _ in range(blocks)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for norm, depth, up, down in zip(self.norms, self.depth, self.up, self.down, strict=True):
            x = x + down(F.gelu(up(norm(depth(x)))))
        return x.mean((2, 3))


def build(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = ConvNeXt()
    with torch.no_grad():
        for depth in model.depth:  # the norm brings any scale back to one
            depth.weight.mul_(800.0)
            depth.bias.mul_(800.0)
    return model


def samples(count: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 3, 32, 32, generator=generator) for _ in range(count)]
