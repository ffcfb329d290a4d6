"""Examples: each module has build() -> nn.Module, samples() -> list, BUDGET, and runs by itself."""
