"""Strategy ``greedy``: cast one unit after the other along the first-order ranking.

``cast``: no unit of the set could be cast when its turn came, the least harmful first; since a
larger set only makes room, none can be cast afterwards unless errors cancel.
"""

from __future__ import annotations

from mpsearch.search.problem import Problem


def search(problem: Problem) -> None:
    """Cast what can be cast, in the order of predicted harm."""
    kept = problem.everything
    for unit in reversed(problem.keep_order()):
        if problem.try_(kept - {unit}, "cast").met:
            kept = kept - {unit}
