"""EfficientViT: linear attention sums over thousands of tokens."""

from examples.efficientvit import BUDGET, build, samples

__all__ = ["BUDGET", "build", "samples"]

SOURCE = "MNN#2953, efficientvit#110"
CAUSES = {"overflow"}
CULPRITS = {"matmul"}
