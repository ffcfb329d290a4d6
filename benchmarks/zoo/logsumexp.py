"""log-sum-exp without its maximum taken out."""

import torch

SOURCE = "ct#2690"
CAUSES = {"overflow"}
CULPRITS = {"reduce_log_sum_exp"}
BUDGET = 1e-2
NUMERICS = "ane,strict"


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(16, 16)
        self.second = torch.nn.Linear(1, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x) * 8.0
        return self.second(torch.logsumexp(y, -1, keepdim=True))


def build(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return Net()


def samples(count: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(1, 8, 16, generator=generator) for _ in range(count)]
