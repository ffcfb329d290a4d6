"""Strategy ``greedy``: cast one unit after the other along the first-order ranking.

``cast``: no unit of the set could be cast when its turn came, the least harmful first; since a
larger set only makes room, none can be cast afterwards unless errors cancel.
"""

from __future__ import annotations

from mpsearch.search.search import Search


def search(search: Search) -> None:
    """Cast what can be cast, in the order of predicted harm."""
    fp32 = search.problem.all_units
    for unit in reversed(search.ranking.order):
        if search.judge(fp32 - {unit}, "cast").met:
            fp32 = fp32 - {unit}
