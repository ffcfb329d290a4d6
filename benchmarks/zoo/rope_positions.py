"""RoPE with positions past 2048, which FP16 cannot count."""

import torch

SOURCE = "long-context decoders"
CAUSES = {"amplified", "cancellation"}
CULPRITS = {"mul", "cos", "sin", "add", "cast", "matmul", "linear"}
BUDGET = 1e-2


class Rotary(torch.nn.Module):
    """Positions as floats (1, L) and queries (1, L, C) -> rotated queries."""

    def __init__(self, width: int = 32):
        super().__init__()
        rates = 1e4 ** -(torch.arange(0, width, 2).float() / width)
        self.register_buffer("rates", rates)
        self.q = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        position = start[:, None] + torch.arange(x.shape[1]).float()
        angles = position[..., None] * self.rates
        a, b = self.q(x).chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def build(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return Rotary()


def samples(count: int = 8, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    # Starts that FP16 can hold, so that the inputs themselves lose nothing.
    return [
        (torch.randn(1, 24, 32, generator=generator), torch.tensor([2048.0 + 512 * i]))
        for i in range(count)
    ]
