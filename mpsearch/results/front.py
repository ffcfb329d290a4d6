"""What ``pareto`` answers."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from .answer import Answer


class Point(msgspec.Struct, frozen=True):
    """One set on the front: no other set that was tried has both fewer FP32 ops and less error.

    Attributes
    ----------
    fp32_ops
        The ops kept in FP32, in execution order.
    error, heldout_error
        On the calibration data, and on the held-out data (None without any); where infinite, null
        in JSON.
    casts
        Casts between FP16 and FP32 that the set needs.
    """

    fp32_ops: tuple[str, ...]
    error: float
    heldout_error: float | None
    casts: int


class Front(Answer, frozen=True, kw_only=True, dict=True):
    """The front, from the fewest FP32 ops to the smallest error.

    Attributes
    ----------
    error_fp32
        The floor: the error of all-FP32.
    """

    ERRORS: ClassVar[tuple[str, ...]] = ("error_fp32", "points.error")

    metric: str
    candidate_ops: int
    error_fp32: float
    evaluations: int
    points: tuple[Point, ...]
