"""A sine source: the phase is summed over 40,000 steps and loses its digits."""

import math

import torch

SOURCE = "neural source-filter vocoders"
CAUSES = {"accumulation", "amplified"}
CULPRITS = {"cumsum", "sin", "mul"}
BUDGET = 1e-2


class Sine(torch.nn.Module):
    """Pitch in Hz (1, 1, T) at 24 kHz -> waveform (1, 1, T)."""

    def forward(self, pitch: torch.Tensor) -> torch.Tensor:
        phase = torch.cumsum(pitch / 24000.0, -1)
        return 0.1 * torch.sin(2 * math.pi * phase)


def build() -> torch.nn.Module:
    return Sine()


def samples(count: int = 4, seed: int = 0) -> list[torch.Tensor]:
    return [torch.full((1, 1, 40000), 200.0 + 3 * i + 0.7 * seed) for i in range(count)]
