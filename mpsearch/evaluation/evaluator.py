"""From a precision to its error: the loss over samples and profiles."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..program.precision import Precision
from .backend import Backend
from .coverage import expected, tolerated
from .metrics import Metric, Outputs

B = TypeVar("B", bound=Backend)
See = Callable[[int, int, Outputs], None]  # sample, profile, outputs


@dataclass(frozen=True, slots=True)
class Measured:
    """What evaluating a precision gave.

    ``loss`` is what it is judged by: that of the worst sample, or what the next input's is expected
    to stay below; ``worst`` is the worst sample's. ``exact`` is False where evaluation stopped at
    the first sample that broke the budget; the loss is then a lower bound. ``executions`` and
    ``seconds`` are what it cost: ops run, and time.
    """

    loss: float
    worst: float
    exact: bool
    executions: int
    seconds: float


class Evaluator(Generic[B]):
    """Evaluates precisions on a backend against references.

    Parameters
    ----------
    backend
        What computes outputs.
    references
        Per sample, output name to tensor: the PyTorch model in FP32.
    metric, targets
        The error measure, and what a task metric compares with.
    chance
        How likely the next input may be to break the budget of a set that meets it; None where
        the samples are all there is.
    redrawn
        How many of the samples, the last ones, were not given but redrawn.

    Attributes
    ----------
    targets, chance
        As given.
    given
        The samples below this index were given.
    drawn
        The samples below this index that are searched on stand for the next ones. Those searched on
        beside them were chosen for their losses, which say nothing of how losses vary.
    searched
        The samples that precisions are evaluated on, those likeliest to break the budget first:
        all of them, unless :meth:`search_on` says otherwise.
    """

    def __init__(
        self,
        backend: B,
        references: Sequence[Outputs],
        metric: Metric,
        targets: Sequence[Any] = (),
        chance: float | None = None,
        redrawn: int = 0,
    ) -> None:
        self.backend = backend
        self.references = list(references)
        self.metric = metric
        self.evaluations = 0
        self.given = backend.samples - redrawn
        self.drawn = backend.samples
        self.searched = list(range(backend.samples))
        self.targets = list(targets)
        self.chance = chance

    @property
    def by_sample(self) -> bool:
        """Whether every sample has a loss of its own, of which the worst counts."""
        return self.metric.combine == "max"

    @property
    def aims_beyond(self) -> bool:
        """Whether precisions are judged by what the next input's loss is expected to be."""
        return self.by_sample and self.chance is not None

    @property
    def rest(self) -> list[int]:
        """The samples that are not searched on."""
        searched = set(self.searched)
        return [s for s in range(self.backend.samples) if s not in searched]

    def draw(self, count: int) -> None:
        """Evaluate on the first ``count`` samples from now on, which stand for the next ones."""
        self.search_on(range(count))
        self.drawn = count

    def search_on(self, samples: Iterable[int]) -> None:
        """Evaluate on these samples from now on, where each has a loss of its own."""
        if self.by_sample:
            self.searched = list(samples)

    @contextmanager
    def likeliest(self, count: int) -> Iterator[None]:
        """Evaluate on so many samples, those likeliest to break the budget, within the block."""
        searched = list(self.searched)
        self.search_on(searched[:count])
        try:
            yield
        finally:
            self.search_on(searched)

    def losses(
        self,
        precision: Precision,
        samples: Iterable[int],
        enough: Callable[[dict[int, float]], bool] | None = None,
    ) -> dict[int, float]:
        """The loss of each sample, the worst over the profiles, until there are ``enough``.

        Nothing on the way is remembered. Only where every sample has a loss of its own.

        Raises
        ------
        Stop
            If the run is to end.
        """
        assert self.metric.parts is not None
        found: dict[int, float] = {}
        profiles = self.backend.profiles if len(precision) < precision.count else 1
        wanted = list(samples)
        runs = [self.backend.several(precision, wanted, profile) for profile in range(profiles)]
        for sample, outputs in zip(wanted, zip(*runs, strict=True), strict=True):
            reference = self.references[sample]
            found[sample] = max(self.metric.parts(reference, out)[0] for out in outputs)
            if enough is not None and enough(found):
                break
        return found

    def evaluate(
        self,
        precision: Precision,
        limit: float = math.inf,
        see: See | None = None,
        enough: Callable[[], bool] | None = None,
        remember: int | None = None,
    ) -> Measured:
        """The loss of a precision, the worst over the profiles.

        ``limit`` stops at the first sample that brings the loss above it. ``see`` is shown what
        comes out: sample, profile and outputs. ``enough`` says, after the first sample, whether
        those seen so far will do. ``remember`` says of how many samples results are worth
        remembering, those likeliest to break the budget first, if not of all.

        Raises
        ------
        Stop
            If the run is to end.
        """
        started, executed = time.perf_counter(), self.backend.executions
        loss, worst, exact = -math.inf, -math.inf, True
        profiles = self.backend.profiles if len(precision) < precision.count else 1
        for profile in range(profiles):
            losses, complete = self._in_profile(precision, profile, limit, see, enough, remember)
            worst = max(worst, *losses)
            loss = max(loss, self._next(self.searched, losses) if complete else worst)
            exact = exact and complete
            if loss > limit or not complete:
                # What was not looked at, samples or profiles, may be worse still.
                exact = exact and profile == profiles - 1
                break
        exact |= loss == math.inf
        self.evaluations += 1
        ran = self.backend.executions - executed
        return Measured(loss, worst, exact, ran, time.perf_counter() - started)

    def judged(
        self, samples: Sequence[int], losses: Sequence[float], executions: int, seconds: float
    ) -> Measured:
        """What the losses of these samples, or of the first, say of a precision, in one profile."""
        worst, complete = max(losses), len(losses) == len(samples)
        loss = self._next(samples, losses) if complete else worst
        return Measured(loss, worst, complete or loss == math.inf, executions, seconds)

    def repeat(self, measured: Measured, searched: Sequence[int]) -> None:
        """Stand as after an evaluation that gave this, with the samples in that order."""
        self.search_on(searched)
        self.evaluations += 1
        self.backend.executions += measured.executions

    @property
    def tolerated(self) -> int:
        """On how many redrawn samples a set may break its limit."""
        return tolerated(self.backend.samples, self.chance or 0.0)

    def may_break(self, losses: Mapping[int, float]) -> bool:
        """Whether a set may break its limit by these losses: on a few redrawn samples, finitely."""
        redrawn = all(s >= self.given and loss < math.inf for s, loss in losses.items())
        return redrawn and len(losses) <= self.tolerated

    def predicted(self, losses: Sequence[float]) -> float:
        """What the next input's loss stays below, by all samples; the worst if not asked."""
        if not self.aims_beyond or self.chance is None:
            return max(losses)
        return expected(losses, self.chance, student=True)

    def _next(self, samples: Sequence[int], losses: Sequence[float]) -> float:
        """What the losses of samples and the next input's are expected to stay below."""
        worst = max(losses)
        if not self.aims_beyond or self.chance is None:
            return worst
        drawn = [n for sample, n in zip(samples, losses, strict=True) if sample < self.drawn]
        return max(worst, expected(drawn, self.chance))

    def add(self, sample: Mapping[str, Any], reference: Outputs) -> int:
        """One more sample, on a backend that takes it; its index."""
        self.references.append(reference)
        return self.backend.add(sample)

    def _in_profile(
        self,
        precision: Precision,
        profile: int,
        limit: float,
        see: See | None,
        enough: Callable[[], bool] | None,
        remember: int | None,
    ) -> tuple[list[float], bool]:
        """The losses of the samples, or the one loss of all; and whether all were looked at."""
        kept_of = len(self.searched) if remember is None else remember

        def outputs(position: int, sample: int) -> Outputs:
            found = self.backend.outputs(precision, sample, profile, remember=position < kept_of)
            if see is not None:
                see(sample, profile, found)
            return found

        if self.metric.combine == "task":
            given: list[Outputs] = []
            for sample in range(len(self.searched)):
                if given and enough is not None and enough():
                    break
                given.append(outputs(sample, sample))
            seen = len(given)
            loss = self.metric.whole(self.references[:seen], given, self.targets[:seen])
            return [loss], seen == len(self.searched)
        parts: list[tuple[float, float]] = []
        assert self.metric.parts is not None
        for position, sample in enumerate(self.searched):
            if parts and enough is not None and enough():
                break
            parts.append(self.metric.parts(self.references[sample], outputs(position, sample)))
            lost = parts[-1][0]
            if self.by_sample and (lost > limit or lost == math.inf):
                # What broke the budget now is likeliest to break it for the next set.
                self.searched.insert(0, self.searched.pop(position))
                break
        complete = len(parts) == len(self.searched)
        return [n for n, _ in parts] if self.by_sample else [self.metric.combined(parts)], complete
