"""The flow of ``mpsearch worker``: evaluates for a search elsewhere, until that ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..ending import Ending, Stage
from .crew import benches
from .surroundings import neutral, threads


def work(
    directory: Path,
    storage: str,
    ending: Ending,
    metric: str | None = None,
    cache_bytes: int | None = None,
    patience: float = 60.0,
    tell: Callable[[str], object] = lambda _: None,
) -> int:
    """Evaluate for the search into ``directory``, or a copy of it; how many evaluations.

    Parameters are those of :class:`mpsearch.workers.service.Service`.

    Raises
    ------
    InputError
        If the storage cannot be opened, no search begins, the folder holds something else, or this
        machine computes otherwise than the one that searches.
    """
    from ..workers.service import Service

    ending.stage = Stage.SEARCH
    # One thread, as where the search runs: sums are then taken in the same order.
    with neutral(), threads(1):
        folder = benches(directory)
        return Service(folder, storage, ending, metric, cache_bytes, patience, tell).run()
