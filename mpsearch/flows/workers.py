"""Which processes evaluate beside this one."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import closing, contextmanager

from ..errors import InputError
from ..evaluation.incremental import default_cache_bytes
from ..options import Execution
from ..search.evaluations import Workers

_LOCAL = "local:"


def check_workers(execution: Execution) -> None:
    """Fail early where the processes asked for cannot be had.

    Raises
    ------
    InputError
        Where processes cannot be forked, and without dask.distributed where that is needed.
    """
    from ..workers.forked import check_jobs

    check_jobs(execution.jobs, execution.device)
    if execution.cluster is not None and importlib.util.find_spec("distributed") is None:
        raise InputError(
            f"cluster {execution.cluster!r} needs dask.distributed; run pip install "
            "mpsearch[cluster]"
        )


def cache_share(execution: Execution) -> int:
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


@contextmanager
def workers(execution: Execution) -> Iterator[Workers | None]:
    """The processes that evaluate beside this one; None where there are none.

    Raises
    ------
    InputError
        If a cluster does not answer.
    """
    cluster = execution.cluster
    if cluster is not None:
        from ..workers.dask import Cluster

        own = cluster.startswith(_LOCAL)
        cache_bytes = cache_share(execution) if own else execution.cache_bytes
        with closing(Cluster(cluster, cache_bytes)) as found:
            yield found
    elif execution.jobs > 1:
        from ..workers.forked import Forks

        with closing(Forks(execution.jobs)) as forks:
            yield forks
    else:
        yield None
