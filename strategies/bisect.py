"""Strategy ``bisect``: contiguous segments, as onnxconverter-common and Polygraphy do.

``segments``: every segment that stays FP32 is a single unit that could not be cast together with
all that had been cast before it. The largest unresolved segment is tried first and halved where it
fails (onnxconverter-common, ``auto_mixed_precision.py``).
"""

from __future__ import annotations

from mpsearch.search.problem import Problem


def search(problem: Problem) -> None:
    """Cast whole segments, halving those that break the budget."""
    kept = problem.everything
    pending = [tuple(range(len(problem.everything)))]
    while pending:
        pending.sort(key=len)
        segment = pending.pop()
        if problem.try_(kept.difference(segment), "segments").met:
            kept = kept.difference(segment)
        elif len(segment) > 1:
            middle = len(segment) // 2
            pending += [segment[:middle], segment[middle:]]
