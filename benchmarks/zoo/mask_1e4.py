"""At -1e4 FP16 counts in steps of 8: wholly masked rows lose their scores."""

import torch

from benchmarks.zoo import masked
from benchmarks.zoo.masked import samples

__all__ = ["build", "samples"]

BUDGET = 1e-2
SOURCE = "cactus#734"
CAUSES = {"cancellation", "constant"}
CULPRITS = {"mul", "add", "softmax", "matmul"}


def build(seed: int = 0) -> torch.nn.Module:
    return masked.build(-1e4, seed=seed)
