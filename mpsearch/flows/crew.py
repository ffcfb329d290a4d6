"""Who evaluates besides this process, as long as a search runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ..errors import InputError
from ..evaluation.incremental import default_cache_bytes
from ..files import SEARCH
from ..options import Execution
from ..search.ahead import Hire

_LOCAL, _STORAGE = "local:", "storage:"
#: In the folder of a search under way: what workers evaluate with.
_BENCHES = "workers"


def check_crew(execution: Execution) -> None:
    """Fail early where the processes asked for cannot be had.

    Raises
    ------
    InputError
        Where processes cannot be forked, and without dask.distributed where that is needed.
    """
    from ..workers.forked import check_jobs

    check_jobs(execution.jobs, execution.device)
    cluster = execution.cluster
    if cluster is None or cluster.startswith(_STORAGE):
        return
    if importlib.util.find_spec("distributed") is None:
        raise InputError(
            f"cluster {cluster!r} needs dask.distributed; run pip install mpsearch[cluster]"
        )


def share(execution: Execution) -> int:
    """How many bytes of results each process on this machine may remember."""
    processes, cluster = execution.jobs, execution.cluster
    if cluster is not None and cluster.startswith(_LOCAL):
        processes = int(cluster.removeprefix(_LOCAL)) + 1
    if execution.cache_bytes is None:
        return default_cache_bytes(processes)
    return execution.cache_bytes // processes


def threads_of(execution: Execution) -> int | None:
    """One thread for each process where there are several, so that all compute the same."""
    return 1 if execution.jobs > 1 or execution.cluster is not None else None


def benches(out: Path) -> Path:
    """Where the workers of a search into ``out`` find what they evaluate with."""
    return out / SEARCH / _BENCHES


@contextmanager
def crew(execution: Execution) -> Iterator[Hire | None]:
    """What gives workers for a set of samples; None where there are none.

    Raises
    ------
    InputError
        If a cluster does not answer.
    """
    cluster = execution.cluster
    if cluster is None:
        if execution.jobs == 1:
            yield None
            return
        from ..workers.forked import Forks

        yield Forks(execution.jobs).hire
    elif cluster.startswith(_STORAGE):
        from ..workers.requests import Board

        assert execution.storage is not None
        folder = benches(Path(cluster.removeprefix(_STORAGE)))
        with closing(Board(execution.storage, folder)) as board:
            yield board.hire
    else:
        from ..workers.dask import Cluster

        own = cluster.startswith(_LOCAL)
        with closing(
            Cluster(cluster, share(execution) if own else execution.cache_bytes)
        ) as workers:
            yield workers.hire
