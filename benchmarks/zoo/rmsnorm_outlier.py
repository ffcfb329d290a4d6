"""RMSNorm with one channel at 600, as OpenELM and LLaMA have them."""

from examples.llama import BUDGET, build, samples

__all__ = ["BUDGET", "build", "samples"]

SOURCE = "swift-transformers#95, executorch PR 19523"
CAUSES = {"overflow"}
CULPRITS = {"pow", "square", "mul", "reduce_mean"}
