"""A ResNet-18, the positive control: FP16 is enough at a budget of 1e-2."""

import torch
import torch.nn.functional as F

import mpsearch

BUDGET = 1e-2


class Basic(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(outputs)
        self.conv2 = torch.nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(outputs)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = torch.nn.Sequential(
                torch.nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                torch.nn.BatchNorm2d(outputs),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet18(torch.nn.Module):
    """Photograph (1, 3, H, W) -> logits (1, classes). He et al. 2016."""

    def __init__(self, width: int = 64, classes: int = 1000):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn = torch.nn.BatchNorm2d(width)
        sizes = [(width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)]
        layers, before = [], width
        for size, stride in sizes:
            layers += [Basic(before, size, stride), Basic(size, size, 1)]
            before = size
        self.layers = torch.nn.Sequential(*layers)
        self.head = torch.nn.Linear(before, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn(self.stem(x))), 3, 2, 1)
        return self.head(self.layers(x).mean((2, 3)))


def build(small: bool = False, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return ResNet18(16, 10) if small else ResNet18()


def samples(count: int = 4, small: bool = False, seed: int = 0) -> list[torch.Tensor]:
    from examples.efficientvit import samples as photographs

    return photographs(count, small, seed)


if __name__ == "__main__":
    result = mpsearch.optimize(build(), samples(), BUDGET)
    print(result.explanation)
    print("wrote", result.save("resnet18-mixed"))
