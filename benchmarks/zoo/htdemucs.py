"""HTDemucs: GroupNorm written out, over a spectrogram of large values."""

import torch
import torch.nn.functional as F

SOURCE = "HTDemucs"
CAUSES = {"overflow"}
CULPRITS = {"square", "pow", "mul", "reduce_mean", "reduce_sum", "sub", "reduce_sum_square"}
BUDGET = 1e-2


class UNet(torch.nn.Module):
    """Spectrogram (1, 2, F, T) -> mask (1, 2, F, T)."""

    def __init__(self, channels: int = 16):
        super().__init__()
        self.down = torch.nn.Conv2d(2, channels, 4, 2, 1)
        self.norm1 = torch.nn.GroupNorm(4, channels)
        self.middle = torch.nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = torch.nn.GroupNorm(4, channels)
        self.up = torch.nn.Conv2d(channels, 8, 3, padding=1)
        self.out = torch.nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.gelu(self.norm1(self.down(x)))
        y = F.gelu(self.norm2(self.middle(y)))
        y = F.interpolate(F.glu(self.up(y), 1), scale_factor=2.0, mode="nearest")
        return torch.sigmoid(self.out(y))


def build(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return UNet()


def samples(count: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [1500 * torch.randn(1, 2, 32, 16, generator=generator) for _ in range(count)]
