"""LaMa's spectral convolution: an unscaled DFT as a matrix product."""

import math

import torch

SOURCE = "LaMa on Core ML"
CAUSES = {"overflow"}
CULPRITS = {"matmul", "linear"}
BUDGET = 1e-2


class Spectral(torch.nn.Module):
    """Image (1, 1, N, N) in 0..255: DFT, a gain per frequency, inverse DFT."""

    def __init__(self, n: int = 32):
        super().__init__()
        turn = torch.arange(n).double()
        angles = 2 * math.pi * torch.outer(turn, turn) / n
        self.register_buffer("cos", angles.cos().float())
        self.register_buffer("sin", angles.sin().float())
        self.gain = torch.nn.Parameter(1 + 0.1 * torch.randn(n, n))
        self.n = n

    def transform(self, re: torch.Tensor, im: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Along the last axis."""
        return (
            torch.matmul(re, self.cos) + torch.matmul(im, self.sin),
            torch.matmul(im, self.cos) - torch.matmul(re, self.sin),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        re, im = torch.matmul(x, self.cos), -torch.matmul(x, self.sin)
        re, im = self.transform(re.transpose(-1, -2), im.transpose(-1, -2))
        re, im = re * self.gain / self.n**2, -im * self.gain / self.n**2
        re, im = self.transform(re, im)
        re, _ = self.transform(re.transpose(-1, -2), im.transpose(-1, -2))
        return re


def build(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return Spectral()


def samples(count: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [255 * torch.rand(1, 1, 32, 32, generator=generator) for _ in range(count)]
