"""Strategy ``exhaustive``: every set of units, the smallest first.

Its one pass guarantees that no cheaper set meets the budget, if the trials last; for small problems
and as the truth to compare others with.
"""

from __future__ import annotations

import itertools

from mpsearch.search.search import Search


def search(search: Search) -> None:
    """Try all sets by size until one meets the budget."""
    count = len(search.problem.all_units)
    for size in range(count + 1):
        for fp32 in itertools.combinations(range(count), size):
            if search.judge(fp32, "exhaust").met:
                return
