"""MiniLM with its real weights, against a budget at which rounding errors add up."""

from examples.minilm import build, samples

__all__ = ["build", "samples"]

BUDGET = 1e-3
SOURCE = "transformers in FP16 at 1e-3"
CAUSES = {"constant", "overflow"}
CULPRITS = {"add", "mul", "softmax", "sub"}
