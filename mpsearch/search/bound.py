"""A lower bound on the number of FP32 ops.

If keeping more ops in FP32 never hurts, a set of units that breaks the budget when only they are
FP16 must lose at least one member to FP32 in every solution; disjoint sets of that kind must lose
one each. The assumption is not always true, since rounding errors can cancel: where the trials
show it failing, no bound is claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..ending import Stop
from .problem import Problem
from .record import Trial

Breaks = Callable[[Sequence[int]], bool]
#: How many units are expected to be asked about next.
_AHEAD = 16


@dataclass(frozen=True, slots=True)
class Bound:
    """A lower bound, and how sure it is.

    Attributes
    ----------
    price
        At least so much must be paid for FP32; None where the trials contradict the assumption.
    marginal
        Whether it rests on sets that break the budget by less than a factor of two (6 dB), where
        rounding errors that cancel could make a smaller set meet it.
    """

    price: int | None
    marginal: bool

    @property
    def contradicted(self) -> bool:
        """Whether keeping more in FP32 was seen to hurt, so that there is no lower bound."""
        return self.price is None


def lower_bound(
    problem: Problem, wanted: int | None = None, trials: int | None = None, clear: bool = False
) -> Bound:
    """At least so much must be paid for FP32.

    Asks about the sets that prove it; those count as trials, and where they run out, what was
    found so far holds. ``wanted`` ends it once so many disjoint sets cannot be had, ``trials``
    after so many new ones, ``clear`` at the first that breaks the budget only just.
    """
    question, record = problem.question, problem.record
    everything, before = problem.everything, len(record.trials)
    marginal = False

    def breaks(units: Sequence[int]) -> bool:
        nonlocal marginal
        if trials is not None and len(record.trials) - before >= trials:
            return False
        if clear and marginal:
            return False
        try:
            trial = problem.try_(everything.difference(units), "bound")
        except Stop:
            return False  # not shown to break, so no core
        marginal |= not trial.met and len(units) == 1 and not question.far_beyond(trial.loss)
        return _broken(trial, question.limit)

    def expect(units: Sequence[int]) -> None:
        problem.expect(lambda: [everything.difference([u]) for u in units[:_AHEAD]])

    cores = disjoint_cores(problem.keep_order(), breaks, wanted, expect)
    proofs = [record.known(everything.difference(core)) for core in cores]
    marginal |= any(t is not None and not question.far_beyond(t.loss) for t in proofs)
    price = int(sum(min(question.cost[u] for u in core) for core in cores))
    return Bound(None if contradicted(problem) else price, marginal)


def contradicted(problem: Problem) -> bool:
    """Whether keeping more ops in FP32 was seen to hurt, so that no bound can be had."""
    trials, limit = problem.record.trials, problem.question.limit
    met = [t.kept for t in trials if t.met]
    return not monotone(met, [t.kept for t in trials if _broken(t, limit)])


def _broken(trial: Trial, limit: float) -> bool:
    """Whether some sample broke the limit; not where the next one is merely expected to."""
    return trial.seen > limit or bool(trial.overflows)


def disjoint_cores(
    order: Sequence[int],
    breaks: Breaks,
    wanted: int | None = None,
    expect: Callable[[Sequence[int]], None] = lambda _: None,
) -> list[list[int]]:
    """Disjoint sets of units that each break the budget when only they are FP16.

    Taken greedily from ``order``, the worst first: each time the shortest head of what remains that
    breaks the budget. With ``wanted``, the search ends once so many cannot be had unless cores get
    smaller than any before, which they seldom do, since what is left hurts less. ``expect`` is told
    which units are likely to be asked about next, each by itself.
    """
    cores: list[list[int]] = []
    remaining = list(order)
    while remaining:
        size = min(map(len, cores), default=1)
        if wanted is not None and (wanted - len(cores)) * size > len(remaining):
            break
        if size == 1:
            expect(remaining)
        core = _shortest_head(remaining, breaks)
        if core is None:
            break
        cores.append(core)
        members = set(core)
        remaining = [u for u in remaining if u not in members]
    return cores


def _shortest_head(units: Sequence[int], breaks: Breaks) -> list[int] | None:
    # A few units break the budget alone; beyond those, all that is left together may.
    if breaks(units[:1]):
        return list(units[:1])
    if len(units) == 1 or not breaks(units):
        return None
    low, high = 1, len(units)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if breaks(units[:middle]) else (middle, high)
    return list(units[:high])


def monotone(met: Iterable[frozenset[int]], broken: Iterable[frozenset[int]]) -> bool:
    """Whether no set that met the budget lies within one that broke it."""
    failures = list(broken)
    return not any(a < b for a in met for b in failures)
