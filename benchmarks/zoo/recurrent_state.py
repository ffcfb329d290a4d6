"""A state fed back: increments below the spacing of FP16 are lost step by step."""

import torch

SOURCE = "streaming models with fed-back state"
CAUSES = {"accumulation", "cancellation"}
CULPRITS = {"add", "mul", "cumsum"}
BUDGET = 1e-2


class Integrator(torch.nn.Module):
    """Drives (1, T, C) -> the state after T small steps."""

    def __init__(self, width: int = 8, step: float = 2e-3):
        super().__init__()
        self.drive = torch.nn.Linear(width, width)
        self.step = step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        push = 1.5 + torch.tanh(self.drive(x))
        state = 4.0 + 0.0 * x[:, 0]
        for t in range(48):
            state = state + self.step * push[:, t]
        return state - 4.0


def build(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return Integrator()


def samples(count: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 48, 8, generator=generator) for _ in range(count)]
