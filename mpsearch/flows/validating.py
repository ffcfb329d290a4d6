"""Does a set hold on inputs that the search never saw, and what can be promised of that?

The samples are perturbed ones that no set was chosen by, and the held-out ones. Perturbed samples
are drawn anew as often as a set fails on them. The held-out ones are tested along a sequence of
nested sets, from the safest down. The sequence is laid before they are looked at, and testing ends
with the first set that fails, so that what is promised of the smallest set that passes is true
though several were tested (fixed-sequence testing: Angelopoulos et al., "Learn then Test", 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..evaluation import coverage
from ..evaluation.evaluator import Evaluation
from ..package import verification
from ..package.verification import ReadBack
from ..results.data import SequenceStep
from ..search.criterion import far_over
from ..search.problem import UnitSet
from ..search.samples import Kind, Sample
from .job import Job, affordable

#: By what shares of its size a set is enlarged in the sequence of safer sets.
_STEPS = (1.0, 0.7, 0.5, 0.35, 0.2, 0.1, 0.0)
#: Forwards of fresh perturbed samples take so many floating-point operations at most.
_FLOPS = 1e11
#: The share of inputs that may be ruined, where something is known to ruin some.
_RUINED = 0.01


@dataclass(frozen=True, slots=True)
class Validation:
    """What validation says of a package.

    Attributes
    ----------
    losses
        Of the held-out samples looked at; of all together, for metrics that have no others.
    holds
        Whether the set is taken.
    coverage
        What can be promised; None where nothing can be.
    failed
        Samples to search on as well. Empty for a set that holds, and where ``safer`` is taken.
    safer
        What to take where the set fails and no sample is to be searched on; None: all units.
    sequence
        The sets of the sequence that were tested, the safest first.
    """

    losses: tuple[float, ...]
    holds: bool
    coverage: float | None = None
    failed: tuple[Sample, ...] = ()
    safer: UnitSet | None = None
    sequence: tuple[SequenceStep, ...] = ()

    @property
    def worst(self) -> float:
        """The largest loss; minus infinity without any."""
        return max(self.losses, default=-math.inf)


@dataclass
class Validator:
    """Tests sets on samples of which each is used up once a set was chosen by it."""

    job: Job
    heldout: list[Sample] = field(init=False)
    perturbed: list[Sample] = field(init=False)
    _drawn: int = field(init=False)  # perturbed samples, those that are searched on included
    _tested: bool = False  # whether some set was tested on the held-out samples, and failed
    _passed: set[UnitSet] = field(default_factory=set)  # sets of a sequence that were found to hold
    _steps: tuple[SequenceStep, ...] = ()  # of the sequence that was tested last

    def __post_init__(self) -> None:
        prepared, evaluator = self.job.prepared, self.job.search.evaluations.evaluator
        self.heldout, self.perturbed = [], []
        self._drawn = len(prepared.redrawn.samples)
        if not evaluator.by_sample:
            return
        data, references = prepared.heldout, prepared.heldout_references
        for sample, reference, number in zip(data.samples, references, data.places, strict=True):
            place = evaluator.add(sample, reference)
            self.heldout.append(Sample(place, Kind.HELDOUT, number))

    def validate(self, package: ReadBack, fp32: UnitSet) -> Validation:
        """Test the package of a set."""
        search = self.job.search
        if not search.evaluations.evaluator.by_sample:
            return self._together(package, fp32)
        last = fp32 == search.problem.all_units or search.ending.over
        losses = self._package_losses(package)
        broken = [s for s, loss in zip(self.heldout, losses, strict=True) if loss > search.limit]
        if last:
            return self._last(fp32, losses, len(broken))
        if failed := self._failed_perturbed(fp32) or self._ruined(fp32, broken):
            return Validation(losses, False, failed=failed)
        if not self.heldout:
            return Validation(losses, True)
        if fp32 in self._passed:
            few = self._few(len(broken))
            return Validation(losses, few, self._coverage if few else None, sequence=self._steps)
        sequence = self._sequence(fp32)
        self._steps = steps = self._tested_down(sequence)
        passed = sequence[: sum(step.holds for step in steps)]
        if fp32 in passed and self._few(len(broken)):
            return Validation(losses, True, self._coverage, sequence=steps)
        self._tested = True
        larger = [units for units in passed if units != fp32]
        if larger:
            self._passed.add(larger[-1])
            return Validation(losses, False, safer=larger[-1], sequence=steps)
        if not broken:  # the set holds, and a larger one does not: nothing is promised
            return Validation(losses, True, sequence=steps)
        return Validation(losses, False, failed=tuple(broken), sequence=steps)

    def _failed_perturbed(self, fp32: UnitSet) -> tuple[Sample, ...]:
        """Fresh perturbed samples to search on, where a set fails on them.

        Those that it ruins; where they show that it breaks a larger share than it may, so many
        that the share that breaks among those that are searched on stays that of inputs. The empty
        set was not chosen by any sample: those that it was judged on are as good as fresh ones.
        """
        if not fp32 or not self.job.request.perturbs or self.job.context.ending.limited:
            return ()
        if not self.perturbed:
            self._perturb()
        criterion = self.job.search.criterion
        found = self._evaluated(fp32, self.perturbed)
        ruined = tuple(s for s, evaluation in found.items() if criterion.ruins(evaluation))
        broken = sum(map(criterion.breaks, found.values())) - len(ruined)
        confidence, tolerance = self.job.request.constraints.confidence, self.job.request.tolerance
        many = coverage.lower_bound(len(found) - broken, len(found), confidence) > tolerance
        return tuple(self.perturbed[: self._enough]) if many else ruined

    def _perturb(self) -> None:
        """Draw perturbed samples: as many as show the coverage where none breaks the budget.

        More, where a conflict ruins a sample: something flips there, and may on few other inputs.
        """
        prepared, search, wanted = self.job.prepared, self.job.search, self.job.request.constraints
        flips = any(far_over(conflict.loss, search.limit) for conflict in search.conflicts)
        count = coverage.needed(1 - _RUINED, wanted.confidence) if flips else self._enough
        count = min(affordable(prepared.flops, _FLOPS), max(count, self._enough))
        for sample, reference in prepared.further(count, self._drawn):
            place = search.evaluations.evaluator.add(sample, reference)
            self.perturbed.append(Sample(place, Kind.PERTURBED, self._drawn))
            self._drawn += 1

    def _package_losses(self, package: ReadBack) -> tuple[float, ...]:
        prepared = self.job.prepared
        places = [prepared.heldout.places.index(sample.number) for sample in self.heldout]
        return tuple(
            verification.losses(
                package,
                [prepared.heldout.samples[place] for place in places],
                [prepared.heldout_references[place] for place in places],
                prepared.metric,
                prepared.profiles,
            )
        )

    def _last(self, fp32: UnitSet, losses: tuple[float, ...], broken: int) -> Validation:
        """Where there is no searching on: the set is taken, or a safer one."""
        few = self._few(broken)
        fresh = few and (fp32 == self.job.search.problem.all_units or not self._tested)
        self._tested |= not few
        safer = None
        if not few and not self._passed:
            safer = next(iter(self._sequence(fp32)[:1]), None)
            self._passed |= {safer} if safer is not None and safer != fp32 else set()
            safer = safer if safer != fp32 else None
        return Validation(losses, few, self._coverage if fresh else None, safer=safer)

    def _ruined(self, fp32: UnitSet, broken: Sequence[Sample]) -> tuple[Sample, ...]:
        """The first held-out sample that fails by more than rounding: it is searched on."""
        criterion = self.job.search.criterion
        precision = self.job.search.problem.precision(fp32)
        for sample in broken:
            if criterion.ruins(self.job.search.evaluations.evaluate(precision, sample)):
                return (sample,)  # those after it stay fresh
        return ()

    def _evaluated(self, fp32: UnitSet, samples: Sequence[Sample]) -> dict[Sample, Evaluation]:
        search = self.job.search
        precision = search.problem.precision(fp32)
        made = search.evaluations.evaluate_all(precision, samples) if samples else []
        search.evaluations.losses |= {s: e.loss for s, e in zip(samples, made, strict=True)}
        return dict(zip(samples, made, strict=True))

    def _tested_down(self, sequence: Sequence[UnitSet]) -> tuple[SequenceStep, ...]:
        """The sets of a sequence on the held-out samples, until one fails."""
        criterion, problem = self.job.search.criterion, self.job.search.problem
        steps: list[SequenceStep] = []
        for units in sequence:
            found = self._evaluated(units, self.heldout)
            broken = sum(map(criterion.breaks, found.values()))
            count = len(problem.precision(units))
            steps.append(SequenceStep(count, broken, len(found), self._few(broken)))
            if not steps[-1].holds:
                break
        return tuple(steps)

    def _sequence(self, fp32: UnitSet) -> list[UnitSet]:
        """Sets around one, the safest first, the set itself last; never all units."""
        order = self.job.search.ranking.by_relief(fp32)
        sizes = sorted({math.ceil(step * max(len(fp32), 4)) for step in _STEPS}, reverse=True)
        return [fp32.union(order[:size]) for size in sizes if size < max(len(order), 1)]

    def _together(self, package: ReadBack, fp32: UnitSet) -> Validation:
        """The same for a metric of all samples together."""
        prepared, search = self.job.prepared, self.job.search
        if not prepared.heldout.samples:
            return Validation((), True)
        data, references = prepared.heldout, prepared.heldout_references
        loss = verification.loss(package, data, references, prepared.metric, prepared.profiles)
        if loss <= search.limit or fp32 == search.problem.all_units:
            return Validation((loss,), loss <= search.limit)
        evaluator = prepared.heldout_evaluator(
            self.job.request.execution.device, 0, self.job.context.ending
        )
        assert evaluator is not None
        safer = None
        for units in reversed(self._sequence(fp32)[:-1]):
            if evaluator.loss(search.problem.precision(units)) <= search.limit:
                safer = units
                break
        return Validation((loss,), False, safer=safer)

    def promote(self, samples: Sequence[Sample]) -> list[str]:
        """Search on samples as well, from now on; what to say of that.

        Held-out samples that were looked at before one of them are used up: what the search ends
        with is run on them too.
        """
        job, search = self.job, self.job.search
        said = [self._said(sample) for sample in samples if sample.kind is Kind.HELDOUT]
        used = max((s.index for s in samples if s.kind is Kind.HELDOUT), default=-1)
        aside = [s for s in self.heldout if s.index <= used and s not in samples]
        self.heldout = [sample for sample in self.heldout if sample.index > used]
        self.perturbed = [sample for sample in self.perturbed if sample not in samples]
        self._tested, self._passed = False, set()
        refused = job.range.take_in([sample.index for sample in [*samples, *aside]])
        required = {u for u, unit in enumerate(search.problem.units) if refused & {*unit.ops}}
        search.restrict(samples=samples, aside=aside, required=frozenset(required))
        return said

    def _said(self, sample: Sample) -> str:
        search = self.job.search
        known = search.evaluations.known(search.problem.precision(self._latest()))
        what = "broke the budget"
        if sample in known and (harmful := search.criterion.harmful(known[sample])):
            layers = {op.name: op.layer for op in search.problem.ops}
            where = f" in {layers[harmful[0]]}" if layers.get(harmful[0]) else ""
            what = f"overflowed at {harmful[0]}{where}"
        return f"Sample {sample.number}, held out, {what}; it is now among those searched."

    def _latest(self) -> UnitSet:
        best = self.job.search.best
        return frozenset() if best is None else best.fp32

    @property
    def _enough(self) -> int:
        """How many samples show the coverage where none breaks the budget."""
        wanted = self.job.request.constraints
        return coverage.needed(wanted.coverage, wanted.confidence)

    @property
    def _coverage(self) -> float | None:
        wanted, noise = self.job.request.constraints, self.job.prepared.heldout.noise
        count = 0 if noise else len(self.heldout)
        return coverage.promised(count, wanted.coverage, wanted.confidence) if count else None

    def _few(self, broken: int) -> bool:
        if not self.heldout:
            return True
        wanted = self.job.request.constraints
        promise = coverage.promised(len(self.heldout), wanted.coverage, wanted.confidence)
        return broken <= coverage.allowed(len(self.heldout), promise, wanted.confidence)
