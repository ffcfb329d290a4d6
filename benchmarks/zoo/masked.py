"""Attention with an additive mask, the last query's row wholly masked."""

import torch


class Masked(torch.nn.Module):
    """Tokens (1, L, C) and how many of them are real, as a vector of 0 and 1: (1, L)."""

    def __init__(self, value: float, width: int = 32, heads: int = 2, additions: int = 1):
        super().__init__()
        self.value, self.heads, self.additions = value, heads, additions
        self.qkv = torch.nn.Linear(width, 3 * width)
        self.out = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = torch.matmul(q, k.transpose(-1, -2)) * (width // self.heads) ** -0.5
        # Padding queries see nothing at all: their rows are masked from end to end.
        mask = (1.0 - real[:, None, None, :] * real[:, None, :, None]) * self.value
        for _ in range(self.additions):
            scores = scores + mask
        y = torch.matmul(torch.softmax(scores, -1), v)
        return self.out(y.transpose(1, 2).reshape(n, length, width))


def build(value: float, additions: int = 1, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return Masked(value, additions=additions)


def samples(count: int = 8, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    out = []
    for i in range(count):
        real = torch.ones(1, 12)
        real[:, 8 + i % 3 :] = 0.0
        out.append((4 * torch.randn(1, 12, 32, generator=generator), real))
    return out
