"""Which of the sets that were tried no other beats."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .problem import Problem, Trial


def undominated(problem: Problem) -> Sequence[Trial]:
    """Trials that no other beats in both ops and loss, the fewest ops first."""
    exact = [t for t in problem.history if t.exact]
    best = math.inf
    out: list[Trial] = []
    for trial in sorted(exact, key=lambda t: (problem.rank(t.kept)[1], t.loss, sorted(t.kept))):
        if trial.loss < best or not out:
            out.append(trial)
            best = trial.loss
    return out
