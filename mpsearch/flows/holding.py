"""Where a set breaks the budget on data that the search did not see: what else holds, and how much
more margin to search with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

from ..ending import Stage, Stop
from ..evaluation.evaluator import Evaluator
from ..evaluation.incremental import Incremental
from ..search.problem import Problem
from ..search.record import Trial
from ..source.prepare import Prepared

#: How much below the budget to search once a set has failed where the search could not see it.
_MARGIN = 0.9


#: Bytes of results to remember where sets are tried on the held-out data.
_HELDOUT_CACHE = 256 << 20


#: Sets that are tried on the held-out data once the run is to end.
_LAST_LOOKS = 4


def holding(prepared: Prepared, problem: Problem, limit: float) -> Trial | None:
    """The cheapest set tried that meets the budget on the held-out data as well.

    Where the run is to end, a few sets are looked at, from the cheapest to the dearest.
    """
    ending = problem.ending
    held = prepared.heldout_evaluator(cache_bytes=_HELDOUT_CACHE, ending=ending)
    if held is None:
        return None
    trials = sorted(problem.record.accepted(limit), key=lambda t: problem.question.rank(t.kept))
    if not ending.over:
        ending.stage = Stage.SEARCH
        with suppress(Stop):
            return _first_that_holds(trials, problem, held, limit)
    ending.stage = Stage.WRITE
    if len(trials) > _LAST_LOOKS:
        step = (len(trials) - 1) / (_LAST_LOOKS - 1)
        trials = [trials[round(i * step)] for i in range(_LAST_LOOKS)]
    return _first_that_holds(trials, problem, held, limit)


def _first_that_holds(
    trials: Sequence[Trial], problem: Problem, held: Evaluator[Incremental], limit: float
) -> Trial | None:
    for trial in trials:
        measured = held.evaluate(problem.question.precision(trial.kept), limit)
        if measured.exact and measured.loss <= limit:
            return trial
    return None


def tighter(budget: float, loss: float, limit: float, worst: float) -> float:
    """A budget that leaves room for what a set with ``loss`` overshot the limit by, and some.

    Losses in dB are negative, so the room is a difference there and a factor elsewhere.
    """
    least = min(budget, loss)
    if limit > 0:
        return least * _MARGIN * (limit / worst if math.isfinite(worst) else 1.0)
    return least - (worst - limit if math.isfinite(worst) else 0.0) - (1 - _MARGIN) * abs(limit)
