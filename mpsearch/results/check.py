"""What ``check`` finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..package.config import KeptOp
from .plain import number


@dataclass(slots=True)
class CheckResult:
    """Whether a stored config still holds.

    Attributes
    ----------
    holds
        Whether every op of the config was found and the budget is met.
    error, error_fp16, error_fp32
        With the config, with no op and with every op in FP32.
    budget, metric
        The config's, or as given.
    unmatched
        Ops of the config that the model does not have (by name, type and layer).
    same_model
        Whether weights and program are the very ones the config was made from.
    """

    holds: bool
    error: float
    error_fp16: float
    error_fp32: float
    budget: float
    metric: str
    unmatched: list[KeptOp] = field(default_factory=list)
    same_model: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it; infinite errors are null."""
        return {
            "holds": self.holds,
            "error": number(self.error),
            "error_fp16": number(self.error_fp16),
            "error_fp32": number(self.error_fp32),
            "budget": self.budget,
            "metric": self.metric,
            "unmatched": [op.name for op in self.unmatched],
            "same_model": self.same_model,
        }
