"""The state of a search: what was evaluated, on which samples, and what follows from it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import optuna

from ..ending import Ending, Stop
from ..evaluation.evaluator import Evaluation
from ..program.precision import Precision
from .criterion import Criterion, tolerated
from .evaluations import Evaluations
from .problem import Problem, UnitSet
from .ranking import Ranking
from .samples import Sample, Samples, hardest_first
from .study import FP32_OR_FP16, Row, Unstored

#: So many samples, the hardest, are run one by one, so that what sets have in common is run once;
#: the others are run together.
_APART = 8


class Strategy(Protocol):
    """A search strategy, found through the entry-point group ``mpsearch.strategies``."""

    def __call__(self, search: Search) -> None:
        """Search; the best set that was judged to hold is the result."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A set that was judged.

    Attributes
    ----------
    fp32
        The units in FP32.
    met
        Whether the set holds.
    exact
        Whether all samples were looked at; the loss is a lower bound otherwise.
    loss
        The worst loss on the samples that were looked at.
    asked_by
        The pass that asked.
    price
        What the set costs, in the problem's objective.
    fp32_ops
        How many ops are FP32, pinned ones included.
    offenders
        Samples for which it fails, the easiest first.
    """

    fp32: UnitSet
    met: bool
    exact: bool
    loss: float
    asked_by: str
    price: float
    fp32_ops: int
    offenders: tuple[Sample, ...] = ()


@dataclass(frozen=True, slots=True)
class Conflict:
    """Units that break a sample when they alone are FP16: one of them must be FP32.

    ``loss`` is what the sample gives then.
    """

    units: UnitSet
    sample: Sample
    loss: float


def hits_all(conflicts: Iterable[Conflict], fp32: UnitSet) -> bool:
    """Whether a set has a unit of every conflict."""
    return all(not fp32.isdisjoint(conflict.units) for conflict in conflicts)


class Search:
    """A search under way. All verdicts are derived from the evaluations.

    Parameters
    ----------
    problem
        What is asked.
    evaluations
        What evaluates, and remembers.
    samples
        What sets are judged on.
    trials
        How many sets may be judged.
    watch
        Called with every trial.

    Attributes
    ----------
    limit
        The largest loss allowed; :meth:`restrict` changes it.
    required
        Units that every set must hold, as was found on held-out samples.
    conflicts
        Those that were found.
    ranking
        Which units to keep in FP32 first.
    """

    def __init__(
        self,
        problem: Problem,
        evaluations: Evaluations,
        samples: Sequence[Sample],
        *,
        trials: int = 300,
        watch: Callable[[Trial, Search], None] | None = None,
    ) -> None:
        self.problem = problem
        self.evaluations = evaluations
        self.samples = Samples(list(samples))
        self.allowed = trials
        self.watch = watch
        self.limit = problem.limit
        self.required: UnitSet = frozenset()
        self.conflicts: list[Conflict] = []
        self.ranking = Ranking(problem, evaluations.evaluator)
        self._trials: dict[UnitSet, Trial] = {}
        self._refused: set[UnitSet] = set()
        self._best: Trial | None = None

    @property
    def ending(self) -> Ending:
        """When the run ends."""
        return self.evaluations.evaluator.engine.ending

    # -- what is known -------------------------------------------------------------------------

    @property
    def criterion(self) -> Criterion:
        """What a set must do."""
        perturbed = sum(not sample.firm for sample in self.samples)
        allowed = tolerated(perturbed, self.problem.tolerance)
        return Criterion(self.limit, self.problem.harmless, allowed)

    @property
    def trials(self) -> list[Trial]:
        """Every set that was judged, in order."""
        return list(self._trials.values())

    @property
    def remaining(self) -> int:
        """How many sets may still be judged."""
        return self.allowed - len(self._trials)

    @property
    def best(self) -> Trial | None:
        """The cheapest set that holds; of equals, that with fewer ops, casts, and loss."""
        return self._best

    def known(self, fp32: Iterable[int]) -> Trial | None:
        """What came of a set that was judged."""
        return self._trials.get(frozenset(fp32))

    # -- judging -------------------------------------------------------------------------------

    def judge(
        self, fp32: Iterable[int], asked_by: str, asked: optuna.trial.Trial | None = None
    ) -> Trial:
        """Whether a set holds.

        Samples are looked at in the order of their last losses, until the set fails. ``asked_by``
        names the pass that asks; ``asked`` is the proposal of a sampler that is answered.

        Raises
        ------
        Stop
            If trials or time are used up.
        """
        units = frozenset(fp32)
        trial = self._trials.get(units)
        if trial is not None and (trial.exact or trial.offenders):
            self.ending.check()  # also where a strategy asks for nothing new, again and again
            return trial
        if not self.required <= units:
            return self._verdict(units, asked_by, {})
        self._allow()
        return self._judged(units, asked_by, asked)

    def judge_all_units(self) -> Trial:
        """Whether the set of all units holds, whatever trials and time allow.

        It is the last resort, so it holds where no firm sample breaks the limit; where time is
        used up, no firm sample among those that time was enough for.
        """
        return self._judged(self.problem.all_units, "ends", None)

    def _allow(self) -> None:
        """Raise :class:`Stop` where trials or time are used up."""
        self.ending.check()
        if self.remaining <= 0:
            raise Stop

    def _judged(self, units: UnitSet, asked_by: str, asked: optuna.trial.Trial | None) -> Trial:
        started = time.perf_counter()
        precision, whole = self.problem.precision(units), units == self.problem.all_units
        samples = [s for s in self.samples if s.firm] if whole else self.samples.judged
        order = hardest_first(samples, self.evaluations.losses)
        seen: dict[Sample, Evaluation] = {}
        start = 0
        while start < len(order) and (whole or not self.criterion.offenders(seen)):
            if whole and seen and self.ending.over:
                break
            chunk = order[start : start + max(start, 1)]
            seen |= self._evaluated(precision, chunk, start < _APART)
            start += len(chunk)
        if not whole:
            self.evaluations.losses |= {sample: found.loss for sample, found in seen.items()}
        trial = self._verdict(units, asked_by, seen)
        self._record(trial, time.perf_counter() - started, asked)
        return trial

    def _evaluated(
        self, precision: Precision, samples: Sequence[Sample], apart: bool
    ) -> dict[Sample, Evaluation]:
        if len(samples) == 1:
            found = [self.evaluations.evaluate(precision, samples[0], self.limit)]
        else:
            found = self.evaluations.evaluate_all(precision, samples, apart)
        return dict(zip(samples, found, strict=True))

    def _verdict(self, units: UnitSet, asked_by: str, seen: dict[Sample, Evaluation]) -> Trial:
        precision, price = self.problem.precision(units), self.problem.price(units)
        worst = max((found.loss for found in seen.values()), default=math.inf)
        if units == self.problem.all_units:
            complete = all(s in seen for s in self.samples if s.firm)
            met = bool(seen) and worst <= self.limit and (complete or self.ending.over)
            offenders: tuple[Sample, ...] = ()
        else:
            offenders = tuple(self.criterion.offenders(seen))
            complete = len(seen) == len(self.samples.judged)
            met = complete and not offenders and self.required <= units
        return Trial(units, met, complete, worst, asked_by, price, len(precision), offenders)

    def _record(self, trial: Trial, seconds: float, asked: optuna.trial.Trial | None) -> None:
        self._trials[trial.fp32] = trial
        self._consider(trial)
        excess = min(trial.loss - self.limit, 1e6)
        excess = excess if trial.met else max(excess, 1e-12)
        precision = self.problem.precision(trial.fp32)
        row = Row(trial.asked_by, precision, trial.loss, trial.exact, trial.price, excess, seconds)
        try:
            self.evaluations.study.add(row, asked)
        except Unstored as reason:
            self.ending.give_up(str(reason))
        if self.watch is not None:
            self.watch(trial, self)

    def _consider(self, trial: Trial) -> None:
        """Take a set as the best, if it is."""
        if trial.met and trial.fp32 not in self._refused:
            known = [trial] if self._best is None else [self._best, trial]
            rank = self.problem.rank
            self._best = min(known, key=lambda t: (*rank(t.fp32), t.loss, sorted(t.fp32)))

    def set_aside(self) -> None:
        """Judge sets on one sample, the given one that the empty set is worst on.

        All others are set aside: what a search ends with is judged on them
        (:meth:`failing_aside`), and those that it fails on join. A set for all samples is so found
        from few, as programs are from counterexamples (Solar-Lezama et al., "Combinatorial
        Sketching for Finite Programs", 2006).

        Raises
        ------
        Stop
            If time is used up.
        """
        found = self._evaluated(self.problem.precision(()), list(self.samples), apart=False)
        losses = {sample: evaluation.loss for sample, evaluation in found.items()}
        self.evaluations.losses |= losses
        self.samples.set_aside(losses)

    def failing_aside(self, fp32: UnitSet) -> list[Sample]:
        """The samples set aside on which a set fails; where time is used up, of the given ones.

        None for the set of all units, which is the last resort (:meth:`judge_all_units`).

        Raises
        ------
        Stop
            If time is used up while it searches.
        """
        if fp32 == self.problem.all_units:
            return []
        known = self.evaluations.known(self.problem.precision(fp32))
        judged = {s: known[s] for s in self.samples.judged if s in known}
        aside = [s for s in self.samples.aside if s.firm or not self.ending.over]
        found = self._evaluated(self.problem.precision(fp32), aside, apart=False)
        self.evaluations.losses |= {sample: each.loss for sample, each in found.items()}
        return [s for s in self.criterion.offenders(judged | found) if s not in judged]

    def probe(self, fp16: Iterable[int], sample: Sample) -> Evaluation:
        """What one sample gives when only these units are FP16; no trial.

        Raises
        ------
        Stop
            If time is used up.
        """
        self.ending.check()
        precision = self.problem.precision(self.problem.all_units.difference(fp16))
        return self.evaluations.evaluate(precision, sample, self.limit)

    def sample(
        self, sampler: optuna.samplers.BaseSampler, asked_by: str, free: Sequence[int] = ()
    ) -> Trial | None:
        """Judge what an Optuna sampler proposes.

        The sampler decides on the units of its relative search space, by name, and on those of
        ``free``; others are as in the best set.

        Returns
        -------
        Trial or None
            None where the sampler proposes nothing.

        Raises
        ------
        Stop
            If trials or time are used up.
        """
        self._allow()
        study, names = self.evaluations.study, self.problem.names
        asked = study.ask(sampler)
        places = {name: unit for unit, name in enumerate(names)}
        chosen = {unit: names[unit] for unit in free}
        chosen |= {places[name]: name for name in asked.relative_params}
        on = {u for u, n in chosen.items() if asked.suggest_categorical(n, FP32_OR_FP16.choices)}
        middle = frozenset[int]() if self.best is None else self.best.fp32
        units = middle.difference(chosen) | on
        if not chosen or self.known(units) is not None:
            study.give_up(asked)
            return self.known(units) if chosen else None
        try:
            return self.judge(units, asked_by, asked)
        except Stop:
            study.give_up(asked)
            raise

    # -- changes to the question ---------------------------------------------------------------

    def restrict(
        self,
        *,
        limit: float | None = None,
        samples: Iterable[Sample] = (),
        aside: Iterable[Sample] = (),
        required: UnitSet = frozenset(),
        refused: UnitSet | None = None,
    ) -> None:
        """Change what is asked for from now on. Verdicts follow from what was evaluated.

        Parameters
        ----------
        limit
            The largest loss allowed.
        samples
            More samples to judge sets on.
        aside
            More samples to judge on what a search ends with.
        required
            Units that must be FP32.
        refused
            A set that is never the best.
        """
        self.limit = self.limit if limit is None else limit
        self.samples.join(samples)
        self.samples.aside += aside
        self.required |= required
        if refused is not None:
            self._refused.add(refused)
        self._best = None
        for units, trial in self._trials.items():
            self._trials[units] = self._known_verdict(units, trial.asked_by)
            self._consider(self._trials[units])

    def store(self) -> None:
        """Store what was evaluated since the last trial."""
        try:
            self.evaluations.study.store()
        except Unstored as reason:
            self.ending.give_up(str(reason))

    def taken(self, fp32: UnitSet) -> Trial:
        """A trial of a set that is taken, by what is known of it."""
        return self._known_verdict(fp32, "validate")

    def _known_verdict(self, units: UnitSet, asked_by: str) -> Trial:
        known = self.evaluations.known(self.problem.precision(units))
        return self._verdict(
            units, asked_by, {s: known[s] for s in self.samples.judged if s in known}
        )
