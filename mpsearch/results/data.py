"""What a search found, as data."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from ..explain.remedies import Remedy
from ..package.config import KeptOp
from ..package.weights import Stored
from ..scaling.exponents import Scale, ScaledTensor
from ..scaling.patterns import Rewrite
from ..search.cost import Cost
from .answer import Answer


class OpRow(msgspec.Struct, frozen=True):
    """One candidate op, for the report.

    Attributes
    ----------
    fp32
        Whether it is FP32 in the package.
    sensitivity
        The relative L2 error when it alone is FP16, predicted to first order
        (:mod:`mpsearch.search.rounding`); None where it overflows.
    reads
        The candidate ops whose results it reads, by name.
    """

    name: str
    type: str
    layer: str
    line: str
    fp32: bool
    sensitivity: float | None
    reads: tuple[str, ...]


class TrialRow(msgspec.Struct, frozen=True, rename={"asked_by": "pass"}):
    """One evaluation of the search.

    Attributes
    ----------
    asked_by
        The pass that asked (``pass`` in JSON).
    fp32_ops
        How many ops were FP32.
    error
        In the metric; None where infinite, a lower bound where not ``exact``.
    met
        Whether it was within the budget that was searched with last; None where that is not known,
        as samples joined the search since.
    """

    asked_by: str
    fp32_ops: int
    error: float | None
    met: bool | None
    exact: bool


class SequenceStep(msgspec.Struct, frozen=True):
    """A set of the sequence that was tested on held-out samples, the safest first.

    Attributes
    ----------
    fp32_ops
        How many ops were FP32.
    broken, samples
        On how many held-out samples it broke the budget, of how many.
    holds
        Whether so few break it that the coverage can be promised.
    """

    fp32_ops: int
    broken: int
    samples: int
    holds: bool


class Absorption(msgspec.Struct, frozen=True):
    """An op left in FP16 that overflows on the samples, and does no harm by that.

    Attributes
    ----------
    absorbed_by
        The ops that give the same for infinity as for the value itself, for every input
        (:mod:`mpsearch.program.infinity`).
    masks
        Whether that is so only for inputs that leave something unmasked.
    """

    name: str
    absorbed_by: tuple[str, ...]
    masks: bool


class Headroom(msgspec.Struct, frozen=True):
    """How near an op comes to FP16's range.

    Attributes
    ----------
    samples
        What FP16 holds, over the largest magnitude that the op rounds in the samples: below 1 where
        it overflowed.
    next
        The same over what the next input stays below with a chance of 0.999
        (:class:`mpsearch.evaluation.reach.Magnitude`).
    rule
        What follows from it: ``overflows`` and ``may overflow`` (FP32), ``may vanish`` (FP32:
        something is divided by it, and both numbers are its smallest magnitude over what FP16
        rounds to 0), ``absorbed`` (FP16 all the same), ``fits``.
    """

    name: str
    samples: float
    next: float
    rule: str


class Rescaling(msgspec.Struct, frozen=True):
    """How a program is scaled by powers of two (:mod:`mpsearch.scaling.exponents`).

    Attributes
    ----------
    mode
        ``fold`` or ``insert``.
    scales
        What ops take times a power of two.
    tensors
        What is computed otherwise.
    folded, inserted
        How many constants are scaled, and multiplications inserted.
    words
        The same as a sentence.
    """

    mode: str
    scales: tuple[Scale, ...]
    tensors: tuple[ScaledTensor, ...]
    folded: int
    inserted: int
    words: str


class ResultData(Answer, frozen=True, kw_only=True, dict=True):
    """The outcome of a search.

    Attributes
    ----------
    status
        ``met``, ``fp16_suffices``, ``infeasible``, ``interrupted`` (by a signal, or as its time was
        up: the package meets the budget), or ``unwritten``: a set was found whose package could not
        be written.
    budget, metric
        As given.
    error
        The error of the written package, read back and run on the calibration data; of the
        all-FP32 program where nothing was written.
    errors
        The errors of the written package on each sample that it was run on: of the calibration
        data and of held-out samples that joined the search, 32 at most, then of the held-out data.
        Of all samples of each together for metrics that have no others.
    error_fp16, error_fp32
        The errors of all-FP16 and all-FP32 (the floor) on the samples that were searched, held-out
        ones that joined included; None for all-FP16 where there was no time to measure it.
    heldout_error
        The error of the written package on the held-out data; None without any.
    heldout_samples, heldout_broken
        How many held-out samples the package was run on, and how many broke the budget.
    coverage, confidence
        At least this share of inputs like the held-out ones meets the budget, with this
        confidence; None where nothing can be promised.
    sequence
        The nested sets that were tested on held-out samples, the safest first: FP32 ops against the
        share of inputs that breaks the budget.
    kept
        The ops kept in FP32, in execution order.
    candidate_ops
        How many ops could be chosen.
    evaluations, op_executions, forward_equivalents, seconds
        What the search cost: sets evaluated; single ops run; measured op time over that of one
        forward of all calibration samples; wall time. What is measured afterwards for the report
        (each kept op alone) is not in the first three.
    lower_bound
        At least so many ops must stay FP32 by the conflicts that were found, if keeping more in
        FP32 never hurts; None where a trial shows that it does, where ops are pinned, and where
        something else than ops was minimized or layers were decided as a whole.
    proven
        Whether every smaller set was tried and broke the budget (``Limits(prove=True)``).
    minimized
        What was minimized.
    pinned_by_hazard
        Ops of ``fp32_ops`` that were not searched but kept FP32 for a known runtime fault
        (:mod:`mpsearch.explain.hazards`).
    absorbed_overflows
        Ops left in FP16 that overflow on the samples, which the program absorbs for every input.
    headroom
        The ops that come near FP16's range, or leave it, the nearest first.
    tolerated_overflows
        With ``tolerate_overflow``: ops left in FP16 whose results overflow on the calibration data
        where FP32's are finite.
    casts
        Casts between FP16 and FP32 in the written package.
    costs
        What ``fp16``, the ``package`` and ``fp32`` cost (:class:`mpsearch.search.cost.Cost`).
    islands
        The connected groups of FP32 ops, each in execution order.
    ops
        Every candidate op, in execution order.
    front
        FP32 ops and error of the trials that no other beats in both, on the samples that sets were
        judged on.
    remedies
        Changes to the PyTorch model that would cost less (:mod:`mpsearch.explain.remedies`).
    rescaling
        How the program is scaled; None where it is not.
    rewrites
        What is rewritten (:mod:`mpsearch.scaling.stable`).
    rescale_hint
        What ``--rescale`` would give where it is off; empty where that is not better.
    weights
        What came of storing weights otherwise; None where that was not asked for.
    package_bytes
        The package on disk.
    not_measured
        What the end of the time left no room for: ``error_fp16``, ``alone`` (errors and verdicts of
        the kept ops), ``sensitivity`` (of all ops), ``lower_bound``, ``rescale``
        (the hint), ``remedies``.
    understood
        What the data was taken for: how many samples, of which inputs.
    explanation
        What is to be said first, for people.
    trials
        Every set that the search evaluated, in order.
    """

    ERRORS: ClassVar[tuple[str, ...]] = ("error", "error_fp16", "error_fp32")

    status: str
    budget: float
    metric: str
    error: float
    error_fp16: float | None
    error_fp32: float
    candidate_ops: int
    evaluations: int
    op_executions: int
    forward_equivalents: float
    seconds: float
    minimized: str
    understood: str
    explanation: str
    notes: tuple[str, ...]
    trials: tuple[TrialRow, ...]
    kept: tuple[KeptOp, ...]
    costs: dict[str, Cost]
    islands: tuple[tuple[str, ...], ...]
    ops: tuple[OpRow, ...]
    front: tuple[tuple[int, float | None], ...]
    errors: tuple[float, ...] = ()
    heldout_error: float | None = None
    heldout_samples: int = 0
    heldout_broken: int = 0
    coverage: float | None = None
    confidence: float | None = None
    sequence: tuple[SequenceStep, ...] = ()
    lower_bound: int | None = None
    proven: bool = False
    pinned_by_hazard: tuple[str, ...] = ()
    tolerated_overflows: tuple[str, ...] = ()
    absorbed_overflows: tuple[Absorption, ...] = ()
    headroom: tuple[Headroom, ...] = ()
    casts: int = 0
    remedies: tuple[Remedy, ...] = ()
    rescaling: Rescaling | None = None
    rewrites: tuple[Rewrite, ...] = ()
    rescale_hint: str = ""
    weights: Stored | None = None
    package_bytes: int = 0
    not_measured: tuple[str, ...] = ()

    @property
    def fp32_ops(self) -> list[str]:
        """The names of the ops kept in FP32, in execution order."""
        return [op.name for op in self.kept]

    @property
    def gap(self) -> int | None:
        """How many more ops are kept than the lower bound asks for; None without a bound."""
        return None if self.lower_bound is None else len(self.kept) - self.lower_bound

    @property
    def met(self) -> bool:
        """Whether the budget is met on calibration and held-out data."""
        return self.status in ("met", "fp16_suffices")
