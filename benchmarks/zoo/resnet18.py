"""Positive control: a plain ResNet-18 needs no FP32 op."""

from examples.resnet18 import BUDGET, build, samples

__all__ = ["BUDGET", "build", "samples"]

SOURCE = "control"
CAUSES = set()
CULPRITS = set()
