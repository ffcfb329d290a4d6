"""What a search was asked for, and all that is known before it begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .. import options
from ..device.coreml import CoreML, check_mac
from ..ending import Ending
from ..errors import InputError
from ..evaluation.evaluator import Evaluator, Measured
from ..evaluation.incremental import Incremental
from ..evaluation.metrics import Metric, Outputs, resolve
from ..evaluation.reach import Reach
from ..explain.hazards import notes as hazard_notes
from ..explain.hazards import struck
from ..numerics.choosing import Numerics, chosen
from ..options import Constraints, Conversion, Execution, Limits
from ..program.lowering import CandidateOp
from ..scaling.exponents import UNSCALED, Magnitudes, Plan
from ..scaling.magnitudes import magnitudes
from ..scaling.patterns import Rewrite
from ..search import pins
from ..search.ahead import Hire
from ..search.cost import Casts
from ..search.problem import Problem, Strategy
from ..search.question import Question, units
from ..search.record import Trial
from ..search.registry import find_strategy
from ..search.risk import Range
from ..search.store import check_storage
from ..source.prepare import Prepared, check_device
from .converted import Converted
from .crew import check_crew, share
from .keeping import fields, record

DEFAULT_TRIALS = 300
#: How many samples a set is searched on, before it is looked at on the others.
SEARCHED = 8
#: With fewer calibration samples, redrawn ones are added until there are as many: the least, the
#: most, and the floating-point operations that forwards of all of them may take.
_REDRAWN, _MOST_REDRAWN, _REDRAWN_FLOPS = 16, 512, 2e10
#: And those where a sample was lost altogether.
_REDRAWN_FLOPS_LOST = 1e11
#: Share of the trials kept back for searching on where the package or the held-out data fails.
_RESERVE = 0.3


@dataclass(frozen=True)
class Request:
    """What the user asks for, checked before any work.

    Attributes are the arguments of :func:`mpsearch.optimize`.

    Raises
    ------
    InputError
        If something cannot be used.
    """

    budget: float
    metric: str | Callable[..., float]
    targets: Any
    heldout: float
    strategy: str | Strategy
    numerics: Numerics
    conversion: Conversion
    constraints: Constraints
    limits: Limits
    execution: Execution

    def __post_init__(self) -> None:
        options.group(self.conversion, Conversion, "conversion")
        options.group(self.constraints, Constraints, "constraints")
        options.group(self.limits, Limits, "limits")
        options.group(self.execution, Execution, "execution")
        options.number(self.heldout, "heldout")
        # A metric's name is looked up again with the data; a wrong budget fails before the work.
        self.limit(resolve(self.metric, False))
        self.search  # noqa: B018 - an unknown strategy fails before the work
        chosen(self.numerics)
        check_storage(self.execution.storage)
        check_device(self.execution.device)
        check_crew(self.execution)
        if self.execution.backend == "coreml":
            check_mac()

    def limit(self, metric: Metric) -> float:
        """The largest loss allowed."""
        return metric.loss_of(options.budget(self.budget, metric.larger_is_better))

    @property
    def chance(self) -> float | None:
        """How likely the next input may be to break the budget of a set that is taken.

        A tenth of what the user allows: a promise from few samples holds only where none of them
        breaks the budget.
        """
        wanted = self.constraints
        return None if wanted.objective == "calibration" else (1 - wanted.coverage) / 10

    @cached_property
    def search(self) -> Strategy:
        """The strategy itself."""
        return find_strategy(self.strategy)

    @property
    def strategy_name(self) -> str:
        """The strategy, for people and configs."""
        given = self.strategy
        return given if isinstance(given, str) else getattr(given, "__name__", "custom")


def pool_size(flops: float, lost: bool = False) -> int:
    """How many calibration samples a search is to have at least, redrawn ones among them.

    ``flops`` is the cost of a forward pass. Where that is little, many show what few inputs do not:
    an index that flips on one input in twenty, for instance. More are worth their cost where a set
    has ``lost`` a sample altogether that it was not found on: something flips there, and how often
    is to be known better.
    """
    most = (_REDRAWN_FLOPS_LOST if lost else _REDRAWN_FLOPS) / max(flops, 1.0)
    return int(min(max(most, _REDRAWN), _MOST_REDRAWN))


def affordable(samples: int, flops: float) -> bool:
    """Whether forwards of so many samples take so little that many sets may be judged by all."""
    return samples * flops <= _REDRAWN_FLOPS


@dataclass(frozen=True)
class Job:
    """A search about to begin.

    Attributes
    ----------
    casts
        Counts the casts of its program.
    range
        What its ops reach, and which of them FP16 cannot hold.
    name
        What to call the model.
    pinned_by_hazard
        Names of the ops kept FP32 for a known runtime fault.
    notes
        What the result is to say beside its numbers.
    started
        When the call came, in seconds of ``time.perf_counter``.
    plan
        The exponents of the program's tensors.
    rewrites
        What is spelled otherwise in it.
    device
        What computes the outputs of sets; None: the executor.
    before
        The same as it was before its tensors were scaled.
    """

    request: Request
    prepared: Prepared
    problem: Problem
    casts: Casts
    range: Range
    name: str
    pinned_by_hazard: tuple[str, ...]
    notes: tuple[str, ...]
    started: float
    plan: Plan = UNSCALED
    rewrites: tuple[Rewrite, ...] = ()
    device: CoreML | None = None
    before: Job | None = None

    def sizes(self) -> dict[int, Magnitudes]:
        """The magnitudes of its tensors on the calibration samples, measured once."""
        return self._sizes

    @cached_property
    def _sizes(self) -> dict[int, Magnitudes]:
        samples = range(len(self.prepared.calibration.samples))
        return magnitudes(self.problem.engine, self.range, samples)

    @property
    def fits(self) -> bool:
        """Whether no op leaves FP16's range."""
        return not self.range.refused


def pose(
    request: Request,
    prepared: Prepared,
    ending: Ending,
    name: str | None,
    started: float,
    watch: Callable[[Trial, Problem], None] | None,
    plan: Plan = UNSCALED,
    rewrites: Sequence[Rewrite] = (),
    hire: Hire | None = None,
    device: CoreML | None = None,
    before: Job | None = None,
) -> Job:
    """The question that a request asks of a model: what is free, what is pinned, what it costs.

    Raises
    ------
    InputError
        If pins match nothing or contradict each other.
    """
    ops, wanted, execution = prepared.ops, request.constraints, request.execution
    if wanted.by == "layer" and not any(op.layer for op in ops):
        raise InputError(f"--by layer: {pins.NO_LAYERS}")
    fp32 = pins.resolve(wanted.keep_fp32, ops, "--keep-fp32")
    fp16 = pins.resolve(wanted.keep_fp16, ops, "--keep-fp16")
    if fp32 & fp16:
        raise InputError(f"op {ops[min(fp32 & fp16)].name!r} is pinned to FP32 and to FP16")
    faulty = set(struck(ops)) - fp16 - fp32 if wanted.hazards != "off" else set()
    always = fp32 | faulty if wanted.hazards == "pin" else fp32
    compute = None if device is None else Converted(prepared, device)
    evaluator = prepared.pool(execution.device, share(execution), ending, request.chance, compute)
    floor, range_ = measured(prepared, evaluator, ending, execution.jobs)
    required = set() if wanted.tolerate_overflow else _whole(range_.refused, ops, wanted.by)
    against = required & fp16
    required -= always | fp16
    strict = not (wanted.tolerate_overflow or against)
    casts = Casts(prepared.lowered)
    question = Question(
        units(ops, [i for i in range(len(ops)) if i not in always | fp16 | required], wanted.by),
        ops,
        request.limit(prepared.metric),
        frozenset(always | required),
        wanted.minimize,
        casts,
        frozenset(required),
        harmless=range_.harmless if strict else None,
        seed=execution.seed,
    )
    problem = Problem(
        question,
        evaluator,
        record(
            prepared,
            execution,
            ending,
            _asked(request),
            _about(request, prepared, name),
            repr((plan.scales, tuple(rewrites))),
            "executor" if device is None else " ".join(device.about.values()),
        ),
        trials=request.limits.trials or DEFAULT_TRIALS,
        ending=ending,
        watch=watch,
        floor=floor,
        hire=hire,
        jobs=execution.jobs,
    )
    problem.reserve(_RESERVE)
    notes = [*prepared.notes, *hazard_notes(ops, faulty, wanted.hazards == "pin")]
    if against:
        names = ", ".join(ops[i].name for i in sorted(against)[:5])
        notes.append(f"Pinned to FP16 although they overflow there, or soon will: {names}.")
    return Job(
        request,
        prepared,
        problem,
        casts,
        range_,
        name or prepared.source,
        _names(prepared, always - fp32),
        tuple(notes),
        started,
        plan,
        tuple(rewrites),
        device,
        before,
    )


def measured(
    prepared: Prepared, evaluator: Evaluator[Incremental], ending: Ending, jobs: int = 1
) -> tuple[Measured, Range]:
    """What all-FP32 gives, and what it reaches; from then on a few samples are searched on.

    The others, and those redrawn, are looked at where a set is about to be taken. Where the time is
    used up, on the samples that it was enough for, one at least.
    """
    started, executed = time.perf_counter(), evaluator.backend.executions
    reach = Reach(evaluator.backend)
    samples = range(len(prepared.calibration.samples))
    seen = 0

    def outputs() -> Iterator[Outputs]:
        nonlocal seen
        for found in reach.run(samples, 1 if ending.limited else jobs):
            seen += 1
            yield found
            if ending.over:
                return

    targets = prepared.calibration.targets
    loss = prepared.metric.whole(prepared.references, outputs(), targets, cut=True)
    ran = evaluator.backend.executions - executed
    floor = Measured(loss, loss, seen == len(samples), ran, time.perf_counter() - started)
    evaluator.evaluations += 1
    if evaluator.aims_beyond:  # with little time, redrawn samples are only confirmed on
        few = min(SEARCHED, len(samples)) if ending.limited else SEARCHED
        evaluator.draw(min(few, evaluator.backend.samples))
    return floor, Range(evaluator.backend, reach)


def _whole(refused: Iterable[int], ops: Sequence[CandidateOp], by: str) -> set[int]:
    """These ops, with all others of their layers where a layer is decided as a whole."""
    found = set(refused)
    if by == "layer":
        layers = {ops[i].layer for i in found if ops[i].layer}
        found |= {op.index for op in ops if op.layer in layers}
    return found


def _asked(request: Request) -> dict[str, Any]:
    """All that was asked for on which answers depend."""
    return {
        "budget": request.budget,
        "heldout": request.heldout,
        "strategy": request.strategy_name,
        **fields(request.conversion, request.constraints),
    }


def _about(request: Request, prepared: Prepared, name: str | None) -> dict[str, Any]:
    """What the dashboard says of a study."""
    return {
        "model": name or prepared.source,
        "budget": request.budget,
        "metric": prepared.metric.name,
        "numerics": ",".join(p.name for p in prepared.profiles),
        "minimized": request.constraints.minimize,
        "candidate_ops": len(prepared.ops),
    }


def _names(prepared: Prepared, indices: set[int]) -> tuple[str, ...]:
    return tuple(prepared.ops[i].name for i in sorted(indices))
