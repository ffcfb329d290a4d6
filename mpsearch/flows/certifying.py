"""Does a set hold on inputs that the search never saw, and what can be promised of that?

The promise is tested along a path of sets that was laid before the held-out samples were looked
at, from the safest down, each set within the one before; testing ends with the first that fails.
That keeps the confidence as it is stated, though several sets are tested on the same samples
(fixed-sequence testing; Angelopoulos et al., "Learn then Test", 2021).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..evaluation import coverage
from ..package import verification
from ..package.verification import ReadBack
from ..search.confirming import lost
from ..search.mending import enlarging
from ..search.question import Kept
from .converted import Converted
from .job import Job

#: By what shares of its size a set is enlarged for the path above it.
_STEPS = (1.0, 0.5, 0.2, 0.1)
#: Bytes of results to remember where sets are tried on the held-out data.
_CACHE = 256 << 20


@dataclass(frozen=True, slots=True)
class Tested:
    """What held-out samples say of a package.

    Attributes
    ----------
    losses
        Of the held-out samples looked at; of all together, for metrics that have no others.
    holds
        Whether so few break the budget that the coverage can be promised.
    coverage
        What can be promised; None where nothing can be.
    offenders
        Held-out samples to search on as well, by index: one on which the package fails for
        overflow, or altogether, or all that break the budget where no safer set is known to hold.
    safer
        Where the package fails and no sample is to be searched on: the smallest set of the path
        that holds, the safest of it where no time is left to try them. None: all units.
    """

    losses: tuple[float, ...]
    holds: bool
    coverage: float | None = None
    offenders: tuple[int, ...] = ()
    safer: Kept | None = None

    @property
    def worst(self) -> float:
        """The largest loss; minus infinity without any."""
        return max(self.losses, default=-math.inf)


class Certifier:
    """Tests sets on held-out samples, each of which is used up once a choice rests on it."""

    def __init__(self, job: Job) -> None:
        self._job, self._prepared, self._problem = job, job.prepared, job.problem
        self._fresh = list(range(len(job.prepared.heldout.samples)))
        self._held: set[Kept] = set()  # sets of a path that were found to hold
        self._failed = False  # some set was tested on the fresh samples, and failed
        compute = None if job.device is None else Converted(job.prepared, job.device)
        self._seen = job.prepared.heldout_evaluator(
            cache_bytes=_CACHE, ending=job.problem.ending, compute=compute
        )
        if self._seen is not None:
            self._seen.backend.mark = job.problem.question.harmless is not None

    def test(self, package: ReadBack, kept: Kept, hasty: bool) -> Tested:
        """Run a package on the held-out samples that no choice rests on.

        Until one of them is lost, so that those after it stay fresh. Where the test is ``hasty``,
        all of them, and no path: the set is then taken or given up.
        """
        prepared, limit = self._prepared, self._problem.limit
        if not self._fresh:
            return Tested((), True)
        if not self._problem.evaluator.by_sample:
            data, references = prepared.heldout, prepared.heldout_references
            loss = verification.loss(package, data, references, prepared.metric, prepared.profiles)
            return Tested((loss,), loss <= limit, safer=self._safer(kept, loss <= limit))
        found: list[float] = []
        losses = verification.losses(
            package,
            [prepared.heldout.samples[sample] for sample in self._fresh],
            [prepared.heldout_references[sample] for sample in self._fresh],
            prepared.metric,
            prepared.profiles,
        )
        for sample, loss in zip(self._fresh, losses, strict=True):
            found.append(loss)
            if not hasty and loss > limit and self._beyond_rounding(sample, kept, loss):
                return Tested(tuple(found), False, offenders=(sample,))
        few = self._few(found)
        if hasty or kept in self._held:
            # All units together stand at the top of every path.
            late = hasty and self._failed and kept != self._problem.everything
            self._failed |= not few
            coverage_ = self._coverage if few and not late else None
            return Tested(tuple(found), few, coverage_, safer=self._safer(kept, few))
        held = self._holding(kept)
        if few:  # nothing is promised of a set that holds where one with more FP32 ops does not
            whole = len(held) == len(self._path(kept))
            return Tested(tuple(found), True, self._coverage if whole else None)
        self._failed = True
        if held:
            self._held.add(held[-1])
            return Tested(tuple(found), False, safer=held[-1])
        broken = zip(self._fresh, found, strict=True)
        offenders = tuple(sample for sample, loss in broken if loss > limit)
        return Tested(tuple(found), False, offenders=offenders)

    def _beyond_rounding(self, sample: int, kept: Kept, loss: float) -> bool:
        """Whether a held-out sample fails for overflow, or altogether."""
        limit, question = self._problem.limit, self._problem.question
        if lost(loss, limit):
            return True
        if self._seen is None or question.harmless is None:
            return False
        engine = self._seen.backend
        engine.outputs(question.precision(kept), sample, remember=False)
        return bool(self._problem.answerer.harmful(engine.lost))

    def _safer(self, kept: Kept, holds: bool) -> Kept | None:
        """What to take instead of a set that does not hold.

        Where the run is to end, the safest of the path, untested, and after that all units.
        """
        if holds:
            return None
        if self._problem.ending.over:
            held = [] if self._held else self._path(kept)[:1]
        else:
            held = self._holding(kept)
        self._held.update(held[-1:])
        return held[-1] if held else None

    def use_up(self, samples: Sequence[int], kept: Kept) -> list[str]:
        """Search on held-out samples as well, from now on; what to say of that.

        Those that were looked at before them are used up too.
        """
        problem, prepared = self._problem, self._prepared
        question, engine = problem.question, problem.engine
        self._fresh = [sample for sample in self._fresh if sample > max(samples)]
        self._failed, self._held = False, set()
        said, places = [], []
        for sample in samples:
            given, reference = prepared.heldout.samples[sample], prepared.heldout_references[sample]
            places.append(problem.evaluator.add(given, reference))
            engine.outputs(question.precision(kept), places[-1])
            harmed = problem.answerer.harmful(engine.lost)
            what = "broke the budget"
            if harmed:
                where = f" in {harmed[0].layer}" if harmed[0].layer else ""
                what = f"overflowed at {harmed[0].name}{where}"
            number = len(prepared.calibration.samples) + sample
            said.append(f"Sample {number}, held out, {what}; it is now among those searched.")
        refused = self._job.range.take_in(places)
        problem.require(u for u, unit in enumerate(question.units) if refused & {*unit.ops})
        problem.widen(places)
        return said

    @property
    def _coverage(self) -> float:
        wanted = self._job.request.constraints
        return coverage.promised(len(self._fresh), wanted.coverage, wanted.confidence)

    def _few(self, losses: Iterable[float]) -> bool:
        failures = sum(loss > self._problem.limit for loss in losses)
        confidence = self._job.request.constraints.confidence
        return failures <= coverage.allowed(len(self._fresh), self._coverage, confidence)

    def _path(self, kept: Kept) -> list[Kept]:
        """Sets around one, the safest first; all units together, which always hold, left out."""
        order = enlarging(self._problem, kept)
        sizes = sorted({math.ceil(step * max(len(kept), 4)) for step in _STEPS}, reverse=True)
        return [kept.union(order[:size]) for size in sizes if size < len(order)]

    def _holding(self, kept: Kept) -> list[Kept]:
        """The sets of the path around one, up to the first that fails."""
        held = []
        for larger in self._path(kept) if self._seen is not None else ():
            assert self._seen is not None
            precision = self._problem.question.precision(larger)
            if self._seen.by_sample:
                holds = self._few(self._seen.losses(precision, self._fresh).values())
            else:
                holds = self._seen.evaluate(precision).worst <= self._problem.limit
            if not holds:
                break
            held.append(larger)
        return held
