"""Workers on a Dask cluster: each holds the program, the samples and a memory of results."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..errors import InputError, MpsearchError
from ..files import first_line
from ..search.answer import Answer
from ..search.answering import Answerer, Call
from ..temporary import TemporaryFolder
from .bench import Bench

_LOCAL = "local:"
#: Seconds to wait for a scheduler.
_PATIENCE = 20
#: How often an evaluation is begun anew after its worker was lost.
_RETRIES = 3
#: How long what is known of the workers is good for, in seconds.
_FRESH = 1.0


class Cluster:
    """Gives the workers of a Dask cluster, one for each process there.

    Parameters
    ----------
    address
        ``tcp://host:port`` of a scheduler, or ``local:N`` for N processes on this machine.
    cache_bytes
        Limit for what each process remembers; None: as for one process.

    Raises
    ------
    InputError
        If dask.distributed is not installed, or nothing answers at the address.
    """

    def __init__(self, address: str, cache_bytes: int | None) -> None:
        try:
            import dask
            from distributed import Client, LocalCluster
        except ImportError as error:
            raise InputError(
                f"--cluster {address} needs dask.distributed; run pip install mpsearch[cluster]"
            ) from error
        self._bytes = cache_bytes
        self._own: Any = None
        self._folder = TemporaryFolder()  # of the workers that are started here
        with quiet():
            try:
                if address.startswith(_LOCAL):
                    with dask.config.set({"temporary-directory": str(self._folder.path)}):
                        self._own = LocalCluster(
                            n_workers=int(address.removeprefix(_LOCAL)),
                            threads_per_worker=1,
                            processes=True,
                            memory_limit=None,
                            dashboard_address=None,
                        )
                self._client = Client(self._own or address, timeout=_PATIENCE, set_as_default=False)
            except Exception as error:  # whatever the network raises
                if self._own is not None:
                    self._own.close()
                raise InputError(
                    f"no Dask cluster answers at {address} ({first_line(error)}); give the address "
                    "that dask scheduler prints, or local:4"
                ) from error
        self._seen, self._count = 0.0, 0
        self._name, self._hired = f"mpsearch-{uuid.uuid4().hex}", 0

    def hire(self, answerer: Answerer) -> Sequence[Seat]:
        """Workers that know the samples that there are now."""
        bench = Bench.of(answerer)
        with quiet():
            try:
                held = self._client.scatter(bench, broadcast=True, hash=False)
            except Exception as error:  # whatever the network raises: the search goes on by itself
                logging.getLogger("mpsearch").warning("the cluster is away: %s", first_line(error))
                return []
            self._hired += 1
            return [Seat(self, held) for _ in range(self.workers)]

    @property
    def workers(self) -> int:
        """How many processes there are; 0 where the scheduler is away."""
        if time.monotonic() > self._seen + _FRESH:
            try:
                self._count = len(self._client.scheduler_info(n_workers=-1)["workers"])
            except Exception:  # whatever the network raises
                self._count = 0
            self._seen = time.monotonic()
        return self._count

    def submit(self, held: Any, call: Call) -> Any:
        """The future of an answer."""
        return self._client.submit(
            _evaluate,
            held,
            self._bytes,
            call,
            key=f"{self._name}-{self._hired}-{call.key}",
            retries=_RETRIES,
            pure=True,
        )

    def close(self) -> None:
        """Let go of the cluster; end it where it was made here."""
        with quiet(), contextlib.suppress(Exception):  # it may be gone
            self._client.close()
        if self._own is not None:
            with quiet(), contextlib.suppress(Exception):
                self._own.close()
        self._folder.close()


class Seat:
    """Room for one evaluation on a cluster (:class:`mpsearch.search.ahead.Worker`)."""

    def __init__(self, cluster: Cluster, held: Any) -> None:
        self._cluster, self._held = cluster, held
        self._future: Any = None
        self.call: Call | None = None

    @property
    def alive(self) -> bool:
        """Whether there is a worker at all."""
        return self._held.status == "finished" and self._cluster.workers > 0

    @property
    def done(self) -> bool:
        """Whether there is a result, or will be none."""
        return bool(self._future.done()) or not self.alive

    def begin(self, call: Call) -> None:
        """Evaluate this."""
        self.call = call
        self._future = self._cluster.submit(self._held, call)

    def result(self) -> Answer | None:
        """The answer; None where the cluster lost it, or the machine computes otherwise."""
        self.call, future = None, self._future
        if future.status != "finished":
            with contextlib.suppress(Exception):
                future.cancel()
            return None
        try:
            found: Answer | None = future.result(timeout=_PATIENCE)
        except Exception:  # the result went with its worker
            return None
        return found

    def wait(self, seconds: float) -> None:
        """Wait until it is done, so long at most."""
        from distributed import wait

        with contextlib.suppress(Exception):  # not done yet
            wait([self._future], timeout=seconds)

    def close(self) -> None:
        """Cancel what is under way."""
        if self._future is not None:
            with contextlib.suppress(Exception):  # the cluster may be gone
                self._future.cancel()


#: The answerer of the last bench, in a worker's process.
_held: list[tuple[Bench, Answerer | None]] = []
_one = threading.Lock()


def _evaluate(bench: Bench, cache_bytes: int | None, call: Call) -> Answer | None:
    """Run in a worker, one at a time whatever its threads."""
    with _one:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as where the search runs
        try:
            if not _held or _held[0][0] is not bench:
                _held[:] = [(bench, _answerer(bench, cache_bytes))]
            answerer = _held[0][1]
            return None if answerer is None else answerer.ahead(call)
        finally:
            torch.set_num_threads(threads)


def _answerer(bench: Bench, cache_bytes: int | None) -> Answerer | None:
    try:
        return bench.answerer(cache_bytes=cache_bytes)
    except MpsearchError as error:  # this machine computes otherwise
        logging.getLogger("mpsearch").warning("%s", error)
        return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Dask tells of workers that come and go; what matters is told in the result."""
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
