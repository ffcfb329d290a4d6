"""Strategy ``exhaustive``: every set of units, the smallest first.

Its one pass guarantees that no cheaper set meets the budget, if the trials last; for small problems
and as the truth to compare others with.
"""

from __future__ import annotations

import itertools

from mpsearch.search.problem import Problem


def search(problem: Problem) -> None:
    """Try all sets by size until one meets the budget."""
    count = len(problem.everything)
    for size in range(count + 1):
        for kept in itertools.combinations(range(count), size):
            if problem.try_(kept, "exhaust").met:
                return
