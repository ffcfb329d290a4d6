"""The mask value finfo.min becomes -inf in FP16, and 0 * inf NaN."""

import torch

from benchmarks.zoo import masked
from benchmarks.zoo.masked import samples

__all__ = ["build", "samples"]

BUDGET = 1e-2
SOURCE = "ct#2669"
CAUSES = {"constant"}
CULPRITS = {"mul", "add", "softmax", "matmul"}


def build(seed: int = 0) -> torch.nn.Module:
    return masked.build(torch.finfo(torch.float32).min, seed=seed)
