"""A mask value of -1e9 is beyond FP16: coremltools keeps the product, the sum overflows."""

import torch

from benchmarks.zoo import masked
from benchmarks.zoo.masked import samples

__all__ = ["build", "samples"]

BUDGET = 1e-2
SOURCE = "ct#2223"
CAUSES = {"constant", "overflow"}
CULPRITS = {"mul", "add", "softmax", "matmul"}


def build(seed: int = 0) -> torch.nn.Module:
    return masked.build(-1e9, seed=seed)
