"""Speech at int16 scale: power spectrum, then its logarithm."""

import math

import torch

SOURCE = "SenseVoice"
CAUSES = {"overflow"}
CULPRITS = {"matmul", "linear", "pow", "square", "mul", "add", "conv"}
BUDGET = 1e-2


class LogPower(torch.nn.Module):
    """Frames (1, T, N) of int16 audio -> log power (1, T, bands)."""

    def __init__(self, n: int = 64, bands: int = 16):
        super().__init__()
        turn = torch.arange(n).double()
        angles = 2 * math.pi * torch.outer(turn, turn[: n // 2]) / n
        window = torch.hann_window(n, dtype=torch.float64)[:, None]
        self.register_buffer("cos", (window * angles.cos()).float())
        self.register_buffer("sin", (window * angles.sin()).float())
        self.register_buffer("mel", torch.rand(n // 2, bands) / n)
        self.head = torch.nn.Linear(bands, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        re, im = torch.matmul(x, self.cos), torch.matmul(x, self.sin)
        power = torch.matmul(re * re + im * im, self.mel)
        return self.head(torch.log(power + 1.0) - 10.0)


def build(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return LogPower()


def samples(count: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [3000 * torch.randn(1, 10, 64, generator=generator) for _ in range(count)]
