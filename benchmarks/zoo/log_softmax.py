"""log_softmax is lowered to log(softmax(x)), whose small probabilities vanish."""

import torch

SOURCE = "ct#2728"
CAUSES = {"underflow"}
CULPRITS = {"softmax", "log"}
BUDGET = 1e-2


class Scorer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(16, 32)
        self.head = torch.nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(8.0 * self.head(torch.tanh(self.body(x))), -1)


def build(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = Scorer()
    with torch.no_grad():
        model.head.weight.mul_(4)
    return model


def samples(count: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(4, 16, generator=generator) for _ in range(count)]
