"""What ``pareto`` finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .plain import number


@dataclass(frozen=True, slots=True)
class Point:
    """One set on the front: no other set that was tried has both fewer FP32 ops and less error.

    Attributes
    ----------
    fp32_ops
        The ops kept in FP32, in execution order.
    error, heldout_error
        On the calibration data, and on the held-out data (None without any).
    casts
        Casts between FP16 and FP32 that the set needs.
    """

    fp32_ops: list[str]
    error: float
    heldout_error: float | None
    casts: int


@dataclass(frozen=True, slots=True)
class Front:
    """The front, from the fewest FP32 ops to the smallest error.

    Attributes
    ----------
    error_fp32
        The floor: the error of all-FP32.
    """

    points: list[Point]
    metric: str
    candidate_ops: int
    error_fp32: float
    evaluations: int

    def as_dict(self) -> dict[str, Any]:
        """What ``mpsearch pareto --json`` prints. Infinite errors are null."""
        return {
            "metric": self.metric,
            "candidate_ops": self.candidate_ops,
            "error_fp32": number(self.error_fp32),
            "evaluations": self.evaluations,
            "points": [
                {
                    "fp32_ops": point.fp32_ops,
                    "error": number(point.error),
                    "heldout_error": number(point.heldout_error),
                    "casts": point.casts,
                }
                for point in self.points
            ],
        }
