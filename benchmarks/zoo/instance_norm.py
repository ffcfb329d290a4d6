"""InstanceNorm over a checkerboard of +-512: its inner squares overflow."""

import torch

SOURCE = "numerics of strict accumulation"
CAUSES = {"overflow"}
CULPRITS = {"instance_norm"}
BUDGET = 1e-2
NUMERICS = "strict"


class Style(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.InstanceNorm2d(2, affine=True)
        self.conv = torch.nn.Conv2d(2, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.tanh(self.norm(x)))


def build(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return Style()


def samples(count: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(8)
    board = torch.where((rows[:, None] + rows) % 2 == 0, 512.0, -512.0).expand(1, 2, 8, 8)
    return [board + torch.randn(1, 2, 8, 8, generator=generator) for _ in range(count)]
