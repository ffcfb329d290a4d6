"""Searches by conflicts and a cut: propose, judge, learn, until a set holds."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

from .criterion import amplitude
from .problem import UnitSet
from .proposing import propose
from .samples import Sample
from .search import Conflict, Search, Trial
from .shrink import fewest, shrink

#: Says at INFO what is proposed and learned.
_LOG = logging.getLogger(__name__)
#: Units of a conflict, at most: more than these break a sample by rounding that adds up.
SMALL = 6
#: The model of rounding explains an error up to so many times what it predicts.
EXPLAINED = 3.0
#: By what a cut is lowered further each time that lowering it has not been enough; by what factor
#: at most it is lowered at once; and from what factor on two cuts are the same.
_LOWER, _MOST, _CLOSE = 0.8, 256.0, 1.02
#: How much of what a set leaves below the limit the next cut uses up.
_USED = 0.9


@dataclass
class Cut:
    """The largest predicted squared error with which sets hold: what is known of it.

    Attributes
    ----------
    holds, fails
        Cuts at which the proposal held and failed.
    growth
        By what factor the squared error may grow of the set that held.
    guess
        Where to look as long as none held.
    failures
        How often a guess failed.
    ratios
        Of each sample, its squared error over what was predicted, at most.
    """

    holds: float = 0.0
    growth: float = math.inf
    fails: float = math.inf
    guess: float = math.inf
    failures: int = 0
    ratios: dict[Sample, float] = field(default_factory=dict)

    @property
    def next(self) -> float:
        """The cut to propose by."""
        if self.holds == 0:
            return self.guess
        used = self.holds * self.growth * _USED
        between = self.holds * _CLOSE < used < self.fails
        return used if between else math.sqrt(self.holds * self.fails)

    @property
    def known(self) -> bool:
        """Whether there is nothing between what holds and what fails."""
        return self.fails <= self.holds * _CLOSE

    def held(self, at: float, growth: float) -> None:
        """The proposal at a cut held; its squared error may grow by the factor ``growth``."""
        self.holds, self.growth = at, growth

    def failed(self, at: float, predicted: float, factor: float) -> None:
        """The proposal at a cut, of this prediction, broke the limit by a factor."""
        self.fails = min(self.fails, at, predicted)
        lower = predicted / min(max(factor, 1.0) ** 2, _MOST)
        self.guess = min(lower, self.guess) * _LOWER**self.failures
        self.failures += 1


def solve(search: Search) -> None:
    """Find a set that holds, from below.

    Raises
    ------
    Stop
        If trials or time are used up; the best set so far stands.
    """
    problem, cut = search.problem, Cut()
    units: UnitSet | None = search.required
    while units is not None and not cut.known:
        at, best = cut.next, search.best
        if best is not None and problem.rank(units) >= problem.rank(best.fp32):
            if at == math.inf:
                return
            cut.held(at, 1.0)
        else:
            trial = search.judge(units, "propose")
            _LOG.info(
                "proposed %d ops by %d conflicts and a cut of %.3g: %s",
                *(trial.fp32_ops, len(search.conflicts), math.sqrt(at)),
                "holds" if trial.met else f"fails on {trial.offenders[0]} ({trial.loss:.3g})",
            )
            if not trial.met:
                _learn(search, trial, cut)
            elif at == math.inf:
                return  # nothing cheaper has a unit of every conflict
            else:
                cut.held(at, _growth(trial.loss, search.limit))
        found = [conflict.units for conflict in search.conflicts]
        model = None if cut.next == math.inf else search.ranking.model
        units = propose(problem, found, model, cut.next, search.required)
    if search.best is None:
        repair(search, search.required)


def _growth(loss: float, limit: float) -> float:
    """By what factor a squared error may grow."""
    error, most = amplitude(loss, limit), amplitude(limit, limit)
    return (most / error) ** 2 if error > 0 else math.inf


def _learn(search: Search, trial: Trial, cut: Cut) -> None:
    """Learn conflicts from a set that failed, or lower the cut."""
    problem, sample, units = search.problem, trial.offenders[0], trial.fp32
    by_error = search.evaluations.evaluator.metric.name == "rel_l2"
    ratio = cut.ratios.get(sample, 1.0 if by_error else 0.0)
    at = cut.next
    while True:
        found = search.evaluations.evaluate(problem.precision(units), sample, search.limit)
        if not search.criterion.breaks(found):
            return
        predicted = search.ranking.predicted(units)
        error, limit = amplitude(found.loss, search.limit), amplitude(search.limit, search.limit)
        explained = error**2 <= EXPLAINED**2 * ratio * predicted
        if explained and not search.criterion.harmful(found):
            break
        core = _conflict(search, units, sample)
        if core is None:
            break
        search.conflicts.append(core)
        units |= core.units
        if _LOG.isEnabledFor(logging.INFO):  # the bound is an integer program
            names = ", ".join(problem.units[unit].name for unit in sorted(core.units))
            _LOG.info("conflict on %s: %s; at least %s", sample, names, lower_bound(search))
    if predicted > 0 and math.isfinite(error):
        cut.ratios[sample] = max(ratio, error**2 / predicted)
    cut.failed(at, predicted, error / limit)


def _conflict(search: Search, fp32: UnitSet, sample: Sample) -> Conflict | None:
    """A conflict among the units in FP16 on a sample that breaks; None where none is small."""
    ranking = search.ranking
    fp16 = sorted(search.problem.all_units - fp32, key=lambda u: (-ranking.alone(u), u))
    core = shrink(lambda units: search.criterion.breaks(search.probe(units, sample)), fp16, SMALL)
    if core is None:
        return None
    return Conflict(frozenset(core), sample, search.probe(core, sample).loss)


def repair(search: Search, fp32: UnitSet) -> UnitSet:
    """A set that holds, around one that does not: units are added in the order of their relief.

    Raises
    ------
    Stop
        If trials or time are used up.
    """
    order = search.ranking.by_relief(fp32)
    if search.judge(fp32, "repair").met or not order:
        return fp32
    count = fewest(lambda n: search.judge(fp32.union(order[:n]), "repair").met, len(order))
    return fp32.union(order[:count])


def lower_bound(search: Search) -> float | None:
    """The least price of a set that has a unit of every conflict of a given sample.

    It takes no evaluation. None where a set holds that misses a conflict: keeping more ops in FP32
    can hurt there, so that there is no bound.
    """
    found = [c.units for c in search.conflicts if c.sample.firm]
    for trial in search.trials:
        if trial.met and any(trial.fp32.isdisjoint(units) for units in found):
            return None
    units = propose(search.problem, found, forced=search.required)
    return None if units is None else search.problem.price(units)


def within_time(search: Search) -> None:
    """Find some set that holds, early: heads of the ranking, from where the model sees the limit.

    Raises
    ------
    Stop
        If trials or time are used up.
    """
    guess = propose(
        search.problem, (), search.ranking.model, max(search.limit, 0.0) ** 2, search.required
    )
    repair(search, search.required if guess is None else guess)
