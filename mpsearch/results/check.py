"""What ``check`` answers."""

from __future__ import annotations

from typing import ClassVar

from ..package.config import KeptOp
from ..package.matching import Moved
from .answer import Answer


class CheckResult(Answer, frozen=True, kw_only=True, dict=True):
    """Whether a stored config still holds.

    Attributes
    ----------
    holds
        Whether every op of the config was found, and either no sample breaks the budget, or so few
        that the coverage which the config asks for is there with its confidence.
    error, error_fp16, error_fp32
        With the config, with no op and with every op in FP32.
    budget, metric
        The config's, or as given.
    samples, broken
        How many samples there were, and how many broke the budget; None for metrics of all samples
        together.
    coverage, confidence
        At least this share of inputs like these meets the budget, with this confidence (Clopper and
        Pearson, 1934), if the search has not seen them.
    unmatched
        Ops of the config that the model does not have, or of which it has several that could be
        meant.
    moved
        Ops of the config that go by another name now, found by type, layer and place in the graph
        (:mod:`mpsearch.package.matching`).
    broken_by
        Where the budget is broken, the ops in FP16 that do harm alone, the worst first:
        ``sensitivity`` is the error when the op alone is FP16, ``verdict`` why. The 32 ops of
        largest predictions were tried; empty where the rounding of many ops adds up, and where
        FP32 breaks the budget too.
    fp32_holds
        Whether the budget holds with every op in FP32. Where not, precision is not the cause.
    outgrown
        Ops that leave FP16's range, or soon will, although the config scales tensors so that all
        fit: with new weights, other exponents are needed.
    same_model
        Whether weights and program are the very ones the config was made from.
    """

    ERRORS: ClassVar[tuple[str, ...]] = ("error", "error_fp16", "error_fp32")

    holds: bool
    error: float
    error_fp16: float
    error_fp32: float
    budget: float
    metric: str
    samples: int
    broken: int | None = None
    coverage: float | None = None
    confidence: float | None = None
    unmatched: tuple[KeptOp, ...] = ()
    moved: tuple[Moved, ...] = ()
    broken_by: tuple[KeptOp, ...] = ()
    fp32_holds: bool = True
    outgrown: tuple[str, ...] = ()
    same_model: bool = False
