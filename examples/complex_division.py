"""Complex division by real and imaginary parts (coremltools #2164).

(a + bi) / (c + di) needs c*c + d*d, which overflows FP16 for |c| > 256 and vanishes for small c.
"""

import torch

import mpsearch

BUDGET = 1e-2


class ComplexDivision(torch.nn.Module):
    """Divides signals by a channel response, as an equaliser does: (N, 4, L) -> (N, 2, L)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, c, d = x.unbind(1)
        norm = c * c + d * d
        return torch.stack([(a * c + b * d) / norm, (b * c - a * d) / norm], 1)


def build(small: bool = False) -> torch.nn.Module:
    return ComplexDivision()


def samples(count: int = 8, small: bool = False, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([1.0, 1.0, 400.0, 400.0]).reshape(1, 4, 1)
    return [torch.randn(1, 4, 64, generator=generator) * scale for _ in range(count)]


if __name__ == "__main__":
    result = mpsearch.optimize(build(), samples(), BUDGET)
    print(result.explanation)
    print("wrote", result.save("complex_division-mixed"))
