"""Strategy ``bisect``: contiguous segments, as onnxconverter-common and Polygraphy do.

``segments``: every segment that stays FP32 is a single unit that could not be cast together with
all that had been cast before it. The largest unresolved segment is tried first and halved where it
fails (onnxconverter-common, ``auto_mixed_precision.py``).
"""

from __future__ import annotations

from mpsearch.search.search import Search


def search(search: Search) -> None:
    """Cast whole segments, halving those that break the budget."""
    fp32 = search.problem.all_units
    pending = [tuple(range(len(search.problem.all_units)))]
    while pending:
        pending.sort(key=len)
        segment = pending.pop()
        if search.judge(fp32.difference(segment), "segments").met:
            fp32 = fp32.difference(segment)
        elif len(segment) > 1:
            middle = len(segment) // 2
            pending += [segment[:middle], segment[middle:]]
