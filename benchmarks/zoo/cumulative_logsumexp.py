"""A cumulative log-sum-exp written as log(cumsum(exp(x)))."""

import torch

SOURCE = "ct#2729"
CAUSES = {"overflow"}
CULPRITS = {"exp", "cumsum"}
BUDGET = 1e-2


class Survival(torch.nn.Module):
    """Cox regression's risk sets: scores (1, T) -> log of the running sum of hazards."""

    def __init__(self):
        super().__init__()
        self.score = torch.nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = 12.0 + 2.0 * torch.tanh(self.score(x)).squeeze(-1)
        return torch.log(torch.cumsum(torch.exp(score), -1)) - score


def build(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return Survival()


def samples(count: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 40, 8, generator=generator) for _ in range(count)]
