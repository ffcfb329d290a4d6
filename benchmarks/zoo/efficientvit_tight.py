"""EfficientViT against a budget at which every op's rounding counts."""

from examples.efficientvit import build, samples

__all__ = ["build", "samples"]

BUDGET = 3e-4
SOURCE = "MNN#2953, efficientvit#110"
CAUSES = {"overflow"}
CULPRITS = {"matmul"}
