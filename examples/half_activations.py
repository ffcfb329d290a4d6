"""LeakyReLU, RReLU, PReLU and ELU in a ``.half()`` model (coremltools #2470, #2480).

``ct.convert`` stops at each of them with "alpha has dtype fp32 whereas x has dtype fp16". mpsearch
converts an FP32 copy and leaves the halving to the conversion.
"""

import torch

import mpsearch

BUDGET = 5e-3


class Activations(torch.nn.Module):
    """Images (1, 3, 16, 16) in half precision -> scores (1, 8)."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, width, 3),
            torch.nn.LeakyReLU(0.1),
            torch.nn.Conv2d(width, width, 3),
            torch.nn.RReLU(),
            torch.nn.Conv2d(width, width, 3),
            torch.nn.PReLU(width),
            torch.nn.BatchNorm2d(width),
            torch.nn.ELU(0.7),
        )
        self.head = torch.nn.Linear(width, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean((2, 3)))


def build(small: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    model = Activations()
    torch.nn.init.uniform_(model.layers[5].weight, 0.1, 0.4)  # as trained, one for each channel
    return model.eval().half()


def samples(count: int = 8, small: bool = False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 3, 16, 16, generator=generator).half() for _ in range(count)]


if __name__ == "__main__":
    result = mpsearch.optimize(build(), samples(), BUDGET)
    print(result.explanation)
    print("wrote", result.save("half_activations-mixed"))
