"""Strategy ``greedy-optuna``, the default: rank, propose, learn conflicts, refine with Optuna.

``propose``
    The cheapest set that has an op of every conflict, and whose predicted rounding is within a cut:
    with the cut alone, the head of the ranking. Where a set fails, a conflict is learned or the cut
    lowered (:mod:`mpsearch.search.conflicts`).
``prune``
    Units are cast one by one, the least harmful first, until none can be.
``refine``
    An Optuna sampler that learns from the outputs of everything tried so far exchanges units
    (:class:`mpsearch.search.sampler.ResponseSampler`).
"""

from __future__ import annotations

from dataclasses import dataclass

from mpsearch.search.conflicts import lower_bound, solve, within_time
from mpsearch.search.refining import exchange, prune
from mpsearch.search.search import Search


@dataclass(frozen=True)
class GreedyOptuna:
    """The strategy.

    Attributes
    ----------
    misses
        Exchanges in a row that may fail before refining ends; 0 leaves it out.
    units
        How many units of the set, and of the others, exchanges are made from.
    few_samples
        Whether sets may be judged on few samples, and what is found be confirmed on all.
    """

    misses: int = 32
    units: int = 24
    few_samples: bool = True

    def __call__(self, search: Search) -> None:
        """Run the passes; see the module's docstring."""
        if search.ending.limited:
            within_time(search)
        solve(search)
        if search.best is None:
            return
        prune(search, search.best.fp32)
        if search.best.price == lower_bound(search):
            return
        exchange(search, self.misses, self.units)


search = GreedyOptuna()
