"""RT-DETR: near-tied scores, top-k, gather; FP16 picks other queries."""

import torch

SOURCE = "RT-DETR export"
CAUSES = {"amplified", "cancellation"}
CULPRITS = {
    "topk",
    "linear",
    "sigmoid",
    "gather",
    "gather_along_axis",
    "tanh",
    "matmul",
    "reduce_max",
    "add",
}
BUDGET = 2e-2


class Select(torch.nn.Module):
    """Tokens (1, N, C) -> the 8 best, projected."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.body = torch.nn.Linear(width, width)
        self.score = torch.nn.Linear(width, 4)
        self.out = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.body(x))
        best = torch.sigmoid(self.score(y) * 0.01).amax(-1)
        index = torch.topk(best, 8, dim=1).indices
        return self.out(torch.gather(y, 1, index[..., None].expand(-1, -1, y.shape[-1])))


def build(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return Select()


def samples(count: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 100, 16, generator=generator) for _ in range(count)]
