"""A decoder that upsamples with conv_transpose, which FP16 breaks at run time (coremltools #2324).

Its output is shifted on real devices. No simulation of rounding shows that, so mpsearch keeps such
ops FP32 by rule and says so.
"""

import torch
import torch.nn.functional as F

import mpsearch

BUDGET = 1e-2


class Decoder(torch.nn.Module):
    """Codes (1, C, H, W) -> images (1, 3, 4H, 4W)."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.mix = torch.nn.Conv2d(width, width, 3, padding=1)
        self.first = torch.nn.ConvTranspose2d(width, width // 2, 4, 2, 1)
        self.second = torch.nn.ConvTranspose2d(width // 2, 3, 4, 2, 1)

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.mix(code))
        return torch.sigmoid(self.second(F.silu(self.first(x))))


def build(small: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    return Decoder()


def samples(count: int = 8, small: bool = False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 16, 8, 8, generator=generator) for _ in range(count)]


if __name__ == "__main__":
    result = mpsearch.optimize(build(), samples(), BUDGET)
    print(result.explanation)
    print("wrote", result.save("conv_transpose-mixed"))
