"""The SDXL VAE: activations of 1e5 in the residual stream between norms."""

import torch
import torch.nn.functional as F

SOURCE = "ml-stable-diffusion#304"
CAUSES = {"overflow"}
CULPRITS = {"conv", "add"}
BUDGET = 1e-2


class Block(torch.nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = torch.nn.GroupNorm(4, channels)
        self.first = torch.nn.Conv2d(channels, channels, 3, padding=1)
        self.second = torch.nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


class Encoder(torch.nn.Module):
    def __init__(self, channels: int = 16, blocks: int = 3):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = torch.nn.ModuleList(Block(channels) for _ in range(blocks))
        self.norm = torch.nn.GroupNorm(4, channels)
        self.tail = torch.nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.tail(F.silu(self.norm(x)))


def build(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = Encoder()
    with torch.no_grad():
        model.blocks[1].second.weight.mul_(3e5)
    return model


def samples(count: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(1, 3, 16, 16, generator=generator) for _ in range(count)]
