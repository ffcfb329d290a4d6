"""Two masks of -6e4 add up to -inf, and a wholly masked row to NaN."""

import torch

from benchmarks.zoo import masked
from benchmarks.zoo.masked import samples

__all__ = ["build", "samples"]

BUDGET = 1e-2
SOURCE = "UForm#50"
CAUSES = {"constant", "overflow"}
CULPRITS = {"mul", "add", "softmax", "matmul"}


def build(seed: int = 0) -> torch.nn.Module:
    return masked.build(-6e4, additions=2, seed=seed)
