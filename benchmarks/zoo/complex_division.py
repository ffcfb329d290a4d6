"""Complex division by real and imaginary parts: the denominator overflows."""

from examples.complex_division import BUDGET, build, samples

__all__ = ["BUDGET", "build", "samples"]

SOURCE = "ct#2164"
CAUSES = {"overflow"}
CULPRITS = {"mul", "square", "add", "real_div"}
