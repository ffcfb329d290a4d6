"""Strategy ``delta-debug``: ddmin over the units in FP32.

``ddmin``: the set is 1-minimal, no single unit can be cast. Reduces to one of n parts, or to all
but one of them, with n doubled where neither works (Zeller and Hildebrandt, "Simplifying and
Isolating Failure-Inducing Input", 2002).
"""

from __future__ import annotations

from mpsearch.search.search import Search


def search(search: Search) -> None:
    """Minimise the set of units in FP32."""
    fp32 = sorted(search.problem.all_units)
    parts = 2
    while len(fp32) >= 2:
        size = -(-len(fp32) // parts)
        subsets = [fp32[i : i + size] for i in range(0, len(fp32), size)]
        complements = [[u for u in fp32 if u not in set(s)] for s in subsets]
        reduced = next((s for s in subsets if search.judge(s, "ddmin").met), None)
        if reduced is not None:
            fp32, parts = reduced, 2
            continue
        reduced = next((c for c in complements if search.judge(c, "ddmin").met), None)
        if reduced is not None:
            fp32, parts = reduced, max(parts - 1, 2)
        elif parts >= len(fp32):
            return
        else:
            parts = min(2 * parts, len(fp32))
