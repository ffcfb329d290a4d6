"""From a precision to its error: the loss over samples and profiles."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ..program.precision import Precision
from .backend import Backend
from .metrics import Metric, Outputs

B = TypeVar("B", bound=Backend)
See = Callable[[int, int, Outputs], None]  # sample, profile, outputs


@dataclass(frozen=True, slots=True)
class Measured:
    """What evaluating a precision gave.

    ``exact`` is False where evaluation stopped at the first sample that broke the budget; the
    loss is then a lower bound. ``executions`` and ``seconds`` are what it cost: ops run, and time.
    """

    loss: float
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
    """

    def __init__(
        self,
        backend: B,
        references: Sequence[Outputs],
        metric: Metric,
        targets: Sequence[Any] = (),
    ) -> None:
        self.backend = backend
        self.references = list(references)
        self.metric = metric
        self.evaluations = 0
        self._targets = list(targets)
        self._order = list(range(backend.samples))

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
        worst, exact = -math.inf, True
        profiles = self.backend.profiles if len(precision) < precision.count else 1
        for profile in range(profiles):
            loss, complete = self._in_profile(precision, profile, limit, see, enough, remember)
            worst, exact = max(worst, loss), exact and complete
            if worst > limit or not complete:
                # What was not looked at, samples or profiles, may be worse still.
                exact = exact and profile == profiles - 1
                break
        exact |= worst == math.inf
        self.evaluations += 1
        ran = self.backend.executions - executed
        return Measured(worst, exact, ran, time.perf_counter() - started)

    def _in_profile(
        self,
        precision: Precision,
        profile: int,
        limit: float,
        see: See | None,
        enough: Callable[[], bool] | None,
        remember: int | None,
    ) -> tuple[float, bool]:
        kept_of = len(self._order) if remember is None else remember

        def outputs(position: int, sample: int) -> Outputs:
            found = self.backend.outputs(precision, sample, profile, remember=position < kept_of)
            if see is not None:
                see(sample, profile, found)
            return found

        if self.metric.combine == "task":
            given: list[Outputs] = []
            for sample in range(len(self._order)):
                if given and enough is not None and enough():
                    break
                given.append(outputs(sample, sample))
            seen = len(given)
            loss = self.metric.whole(self.references[:seen], given, self._targets[:seen])
            return loss, seen == len(self._order)
        parts: list[tuple[float, float]] = []
        assert self.metric.parts is not None
        for position, sample in enumerate(self._order):
            if parts and enough is not None and enough():
                return self.metric.combined(parts), False
            parts.append(self.metric.parts(self.references[sample], outputs(position, sample)))
            lost = parts[-1][0]
            if self.metric.combine == "max" and (lost > limit or lost == math.inf):
                # What broke the budget now is likeliest to break it for the next set.
                self._order.insert(0, self._order.pop(position))
                break
        return self.metric.combined(parts), len(parts) == len(self._order)
