"""StyleGAN2: the sum of squares of the demodulation leaves FP16's range."""

from examples.stylegan2 import BUDGET, build, samples

__all__ = ["BUDGET", "build", "samples"]

SOURCE = "ct#2110, ct#1671"
CAUSES = {"overflow"}
CULPRITS = {"reduce_sum", "rsqrt", "mul", "square", "add", "reduce_sum_square"}
