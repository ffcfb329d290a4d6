"""The progress bar of a search: what is being done, the best so far, the time left."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from ..search.problem import Problem
from ..search.record import Trial


class Progress:
    """A bar on stderr, silent where stderr is no terminal (unless ``show`` says otherwise)."""

    def __init__(self, show: bool | None = None) -> None:
        self._on = sys.stderr.isatty() if show is None else show
        self._bar: Any = None
        self._stage = ""

    def stage(self, text: str) -> None:
        """Say what is being done now."""
        self._stage = text
        if self._on:
            self._open(None)
            self._bar.set_description_str(text)

    def _open(self, total: int | None) -> None:
        if self._bar is None or self._bar.total != total:
            self.close()
            form = None if total else "{desc} [{elapsed}]"
            self._bar = tqdm(total=total, leave=False, dynamic_ncols=True, bar_format=form)

    def trial(self, trial: Trial, problem: Problem) -> None:
        """Show one more trial."""
        if not self._on:
            return
        self._open(problem.trials)
        done = len(problem.record.trials)
        self._bar.update(done - self._bar.n)
        best = problem.best
        known = "none yet" if best is None else f"{problem.question.price(best.kept):g}"
        self._bar.set_description_str(f"{trial.asked_by}: best {known}", refresh=False)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.refresh()  # what a short stage did is shown once, at least
            self._bar.close()
            self._bar = None
