"""What a search was asked for, and all that is known before it begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..device.coreml import CoreML
from ..ending import Ending
from ..errors import InputError
from ..evaluation.evaluator import Evaluation, Evaluator
from ..evaluation.metrics import Outputs
from ..evaluation.reach import Reach
from ..explain.hazards import affected
from ..explain.hazards import notes as hazard_notes
from ..hints import argument, option
from ..options import Constraints
from ..program.candidates import CandidateOp
from ..program.precision import Precision
from ..scaling.exponents import UNSCALED, Magnitudes, Plan
from ..scaling.magnitudes import magnitudes
from ..scaling.patterns import Rewrite
from ..search import pins
from ..search.cost import Casts
from ..search.evaluations import Evaluations, Workers
from ..search.problem import Problem, units
from ..search.risk import Range
from ..search.samples import Kind, Sample
from ..search.search import Search, Trial
from ..search.study import Study
from ..source.prepare import Prepared
from .converted import Converted
from .request import Request
from .study import fields, study
from .workers import cache_share

DEFAULT_TRIALS = 300
#: Perturbed samples are added until there are so many samples, or as many as forwards of so many
#: floating-point operations pay for.
_POOL, _POOL_FLOPS = 64, 2e10
#: So many samples are afforded whatever a forward pass costs.
_LEAST = 16


def affordable(flops: float, budget: float) -> int:
    """How many samples forwards of ``budget`` floating-point operations pay for, 16 at least.

    ``flops`` is the cost of one forward pass.
    """
    return max(int(budget / max(flops, 1.0)), _LEAST)


def pool_size(flops: float) -> int:
    """How many samples a search begins with, perturbed ones included."""
    return min(affordable(flops, _POOL_FLOPS), _POOL)


@dataclass(frozen=True)
class Context:
    """What stays the same in a run, whatever program is searched.

    Attributes
    ----------
    request
        What was asked for.
    ending
        When the run ends.
    name
        What to call the model; None: as its source.
    started
        When the call came, in seconds of ``time.perf_counter``.
    watch
        Called with every trial.
    workers
        Processes that evaluate beside this one.
    device
        What computes the outputs of sets; None: the executor.
    """

    request: Request
    ending: Ending
    name: str | None = None
    started: float = 0.0
    watch: Callable[[Trial, Search], None] | None = None
    workers: Workers | None = None
    device: CoreML | None = None


@dataclass(frozen=True)
class Job:
    """A search about to begin.

    Attributes
    ----------
    context
        What stays the same for a changed program.
    prepared
        The program, its samples and references.
    search
        The state of the search.
    range
        What its ops reach, and which of them FP16 cannot hold.
    pinned_by_hazard
        Names of the ops kept FP32 for a known runtime fault.
    notes
        What the result is to say beside its numbers.
    plan
        The exponents of the program's tensors.
    rewrites
        What is rewritten in it.
    before
        The same as it was before its tensors were scaled.
    """

    context: Context
    prepared: Prepared
    search: Search
    range: Range
    pinned_by_hazard: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    plan: Plan = UNSCALED
    rewrites: tuple[Rewrite, ...] = ()
    before: Job | None = None

    @property
    def request(self) -> Request:
        """What was asked for."""
        return self.context.request

    @property
    def casts(self) -> Casts:
        """Counts the casts of the program."""
        assert self.search.problem.casts is not None
        return self.search.problem.casts

    @property
    def name(self) -> str:
        """What to call the model."""
        return self.context.name or self.prepared.source

    def sizes(self) -> dict[int, Magnitudes]:
        """The magnitudes of its tensors on the calibration samples, measured once."""
        return self._sizes

    @cached_property
    def _sizes(self) -> dict[int, Magnitudes]:
        engine = self.search.evaluations.evaluator.engine
        return magnitudes(engine, self.range, range(len(self.prepared.calibration.samples)))

    @property
    def fp32_loss(self) -> float:
        """The worst loss of all-FP32 on the given samples that time was enough for.

        Those that were held out count once they have joined the search.
        """
        return max(self._losses(Precision.all_fp32(len(self.prepared.ops))))

    @property
    def fp16_loss(self) -> float | None:
        """The worst loss of all-FP16 on the given samples, pins left aside.

        None where time is used up before it was run on each of them.
        """
        losses = self._losses(Precision.all_fp16(len(self.prepared.ops)))
        return None if len(losses) < sum(s.firm for s in self.search.samples) else max(losses)

    def _losses(self, precision: Precision) -> list[float]:
        """The losses on the given samples; where time is used up, on those that it was run on."""
        search = self.search
        given = [sample for sample in search.samples if sample.firm]
        known = search.evaluations.known(precision)
        if search.ending.over:
            return [known[sample].loss for sample in given if sample in known]
        return [e.loss for e in search.evaluations.evaluate_all(precision, given)]

    @property
    def fits(self) -> bool:
        """Whether no op leaves FP16's range."""
        return not self.range.refused


def build_job(
    context: Context,
    prepared: Prepared,
    plan: Plan = UNSCALED,
    rewrites: Iterable[Rewrite] = (),
    before: Job | None = None,
) -> Job:
    """The search that a request asks of a program: what is free, what is pinned, what it costs.

    Raises
    ------
    InputError
        If pins match nothing or contradict each other.
    """
    request, ops = context.request, prepared.ops
    wanted, pinned = request.constraints, _pinned(request.constraints, ops)
    evaluator = prepared.evaluator(
        request.execution.device,
        cache_share(request.execution),
        context.ending,
        perturbed=True,
        seed=request.execution.seed,
        compute=None if context.device is None else Converted(prepared, context.device),
    )
    jobs = 1 if context.ending.limited else request.execution.jobs
    losses, range_ = measured(prepared, evaluator, context.ending, jobs)
    required = set() if wanted.tolerate_overflow else _whole(range_.refused, ops, wanted.by)
    against = required & pinned.fp16
    required -= pinned.always | pinned.fp16
    strict = not (wanted.tolerate_overflow or against)
    fixed = pinned.always | pinned.fp16 | required
    problem = Problem(
        units(ops, [i for i in range(len(ops)) if i not in fixed], wanted.by),
        ops,
        request.limit(prepared.metric),
        frozenset(pinned.always | required),
        wanted.minimize,
        Casts(prepared.lowered),
        frozenset(required),
        harmless=range_.harmless if strict else None,
        tolerance=request.tolerance,
        seed=request.execution.seed,
    )
    rewrites = tuple(rewrites)
    changes = repr((plan.scales, rewrites))
    evaluations = Evaluations(evaluator, _study(context, prepared, changes), context.workers)
    samples = samples_of(prepared, evaluator)
    if context.ending.limited:  # perturbed samples would take the time that a first set needs
        samples = [sample for sample in samples if sample.firm]
    trials = request.limits.trials or DEFAULT_TRIALS
    search = Search(problem, evaluations, samples, trials=trials, watch=context.watch)
    take_fp32_losses(search, losses)
    notes = [*prepared.notes, *hazard_notes(ops, pinned.faulty, wanted.hazards == "pin")]
    if against:
        names = ", ".join(ops[i].name for i in sorted(against)[:5])
        notes.append(f"Pinned to FP16 although they overflow there, or soon will: {names}.")
    by_hazard = tuple(ops[i].name for i in sorted(pinned.always - pinned.fp32))
    return Job(context, prepared, search, range_, by_hazard, tuple(notes), plan, rewrites, before)


@dataclass(frozen=True, slots=True)
class _Pinned:
    """The ops that are decided before a search, by index.

    ``fp32`` and ``fp16`` are the user's pins, ``faulty`` fail at run time in FP16, ``always`` are
    FP32 for either reason.
    """

    fp32: set[int]
    fp16: set[int]
    faulty: set[int]
    always: set[int]


def _pinned(wanted: Constraints, ops: Sequence[CandidateOp]) -> _Pinned:
    if wanted.by == "layer" and not any(op.layer for op in ops):
        raise InputError(f"{option('by', 'layer')}: {pins.NO_LAYERS}")
    fp32 = pins.resolve(wanted.keep_fp32, ops, argument("keep-fp32", "keep_fp32"))
    fp16 = pins.resolve(wanted.keep_fp16, ops, argument("keep-fp16", "keep_fp16"))
    if fp32 & fp16:
        raise InputError(f"op {ops[min(fp32 & fp16)].name!r} is pinned to FP32 and to FP16")
    faulty = set(affected(ops)) - fp16 - fp32 if wanted.hazards != "off" else set()
    always = fp32 | faulty if wanted.hazards == "pin" else fp32
    return _Pinned(fp32, fp16, faulty, always)


def _study(context: Context, prepared: Prepared, changes: str) -> Study:
    request, device = context.request, context.device
    return study(
        prepared,
        request.execution,
        context.ending,
        _asked(request),
        _about(request, prepared, context.name),
        changes,
        "executor" if device is None else " ".join(device.about.values()),
    )


def take_fp32_losses(search: Search, losses: Sequence[float]) -> None:
    """Remember what all-FP32 gave on the first samples (:func:`measured`)."""
    every = Precision.all_fp32(len(search.problem.ops))
    for sample, loss in zip(search.samples, losses, strict=False):
        search.evaluations.take(every, sample, Evaluation(loss))


def samples_of(prepared: Prepared, evaluator: Evaluator) -> list[Sample]:
    """The samples of an evaluator: calibration, then perturbed; one for metrics of all together."""
    if not evaluator.by_sample:
        return [Sample(0, Kind.CALIBRATION, 0)]
    count = len(prepared.calibration.samples)
    places = prepared.calibration.places
    given = [Sample(i, Kind.CALIBRATION, place) for i, place in enumerate(places)]
    return given + [Sample(i, Kind.PERTURBED, i - count) for i in range(count, evaluator.samples)]


def measured(
    prepared: Prepared, evaluator: Evaluator, ending: Ending, jobs: int = 1
) -> tuple[list[float], Range]:
    """The losses of all-FP32 on the calibration samples, and what its ops reach.

    One loss for metrics of all samples together. Where the time is used up, of the samples that it
    was enough for, one at least.
    """
    reach = Reach(evaluator.engine)
    samples = range(len(prepared.calibration.samples))

    def outputs() -> Iterator[Outputs]:
        for found in reach.run(samples, jobs):
            yield found
            if ending.over:
                return

    metric, references = prepared.metric, prepared.references
    targets = prepared.calibration.targets
    if evaluator.by_sample:
        pairs = zip(outputs(), references, strict=False)
        losses = [metric.whole([reference], [found], []) for found, reference in pairs]
    else:
        losses = [metric.whole(references, outputs(), targets, cut=True)]
    return losses, Range(evaluator.engine, reach)


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
