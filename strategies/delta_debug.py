"""Strategy ``delta-debug``: ddmin over the units kept in FP32.

``ddmin``: the set is 1-minimal, no single unit can be cast. Reduces to one of n parts, or to all
but one of them, with n doubled where neither works (Zeller and Hildebrandt, "Simplifying and
Isolating Failure-Inducing Input", 2002).
"""

from __future__ import annotations

from mpsearch.search.problem import Problem


def search(problem: Problem) -> None:
    """Minimise the set of units kept in FP32."""
    kept = sorted(problem.everything)
    parts = 2
    while len(kept) >= 2:
        size = -(-len(kept) // parts)
        subsets = [kept[i : i + size] for i in range(0, len(kept), size)]
        complements = [[u for u in kept if u not in set(s)] for s in subsets]
        reduced = next((s for s in subsets if problem.try_(s, "ddmin").met), None)
        if reduced is not None:
            kept, parts = reduced, 2
            continue
        reduced = next((c for c in complements if problem.try_(c, "ddmin").met), None)
        if reduced is not None:
            kept, parts = reduced, max(parts - 1, 2)
        elif parts >= len(kept):
            return
        else:
            parts = min(2 * parts, len(kept))
