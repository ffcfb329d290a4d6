"""A vector quantiser: nearest codeword by |x|^2 - 2 x.e + |e|^2, with near ties."""

import torch

SOURCE = "VQ-VAE argmin"
CAUSES = {"cancellation", "amplified"}
CULPRITS = {
    "sub",
    "add",
    "matmul",
    "linear",
    "reduce_argmin",
    "reduce_sum",
    "reduce_sum_square",
    "square",
    "mul",
}
BUDGET = 2e-2


class Quantiser(torch.nn.Module):
    """(1, T, C) -> the nearest codewords (1, T, C)."""

    def __init__(self, codes: int = 64, width: int = 16):
        super().__init__()
        # Codewords far from the origin and close to each other.
        self.register_buffer("book", 6.0 + torch.randn(codes, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cross = torch.matmul(x, self.book.t())
        far = (x * x).sum(-1, keepdim=True) - 2.0 * cross + (self.book * self.book).sum(-1)
        return torch.index_select(self.book, 0, far.argmin(-1).reshape(-1))


def build(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return Quantiser()


def samples(count: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [6.0 + torch.randn(1, 50, 16, generator=generator) for _ in range(count)]
