"""Workers on a Dask cluster. Each holds the program, the samples and a memory of results."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from ..errors import InputError
from ..evaluation.evaluator import Evaluation, Evaluator
from ..evaluation.incremental import Incremental
from ..files import first_line
from ..hints import option
from ..program.precision import Precision
from ..temporary import TemporaryFolder
from .forked import Result, divided, run
from .pickled import pickled, unpickled

_LOCAL = "local:"
#: Seconds to wait for a scheduler.
_PATIENCE = 20
#: How often an evaluation is begun anew after its worker was lost.
_RETRIES = 3
#: How long what is known of the workers is good for, and how often to look for results, in seconds.
_FRESH, _LOOK = 1.0, 0.1


class Cluster:
    """The processes of a Dask cluster (:class:`mpsearch.search.evaluations.Workers`).

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
                f"{option('cluster', address)} needs dask.distributed; run "
                "pip install mpsearch[cluster]"
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
        self._spec: tuple[Evaluator, int, Any] | None = None

    def evaluate(
        self, evaluator: Evaluator, precision: Precision, samples: Sequence[int], apart: bool
    ) -> list[Evaluation]:
        """The evaluations of a precision on several samples, in order.

        This process takes part, and does what the cluster loses.
        """
        held = self._held(evaluator)

        def begin(part: list[int]) -> Result:
            with quiet():
                try:
                    future = self._submit(held, precision, part, apart)
                except Exception:  # the scheduler went away since it was asked for its workers
                    return lambda: None
            return lambda: self._result(future)

        here = partial(run, evaluator, precision, apart=apart)
        return divided(samples, here, [begin] * (self.workers if held is not None else 0))

    def _held(self, evaluator: Evaluator) -> Any:
        """What workers evaluate with, on the cluster; None where the cluster is away."""
        if self._spec is None or self._spec[:2] != (evaluator, evaluator.samples):
            spec = Spec(evaluator)
            with quiet():
                try:
                    held = self._client.scatter(spec, broadcast=True, hash=False)
                except Exception as error:  # whatever the network raises: go on alone
                    logging.getLogger("mpsearch").warning(
                        "the cluster is away: %s", first_line(error)
                    )
                    held = None
            self._spec = evaluator, evaluator.samples, held
        return self._spec[2]

    def _submit(self, held: Any, precision: Precision, samples: Sequence[int], apart: bool) -> Any:
        asked = held, self._bytes, precision, samples, apart
        return self._client.submit(_evaluate, *asked, retries=_RETRIES, pure=False)

    def _result(self, future: Any) -> list[Evaluation] | None:
        """What a future gave; None where the cluster lost it, or computes otherwise."""
        from distributed import wait

        with quiet():
            while not future.done() and self.workers > 0:
                with contextlib.suppress(Exception):  # not done yet
                    wait([future], timeout=_LOOK)
            try:
                if future.status == "finished":
                    found: list[Evaluation] | None = future.result(timeout=_PATIENCE)
                    return found
                future.cancel()
            except Exception:  # the result went with its worker
                return None
        return None

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

    def close(self) -> None:
        """Let go of the cluster; end it where it was made here."""
        with quiet(), contextlib.suppress(Exception):  # it may be gone
            self._client.close()
        if self._own is not None:
            with quiet(), contextlib.suppress(Exception):
                self._own.close()
        self._folder.close()


class Spec:
    """What a worker evaluates with, as pickle takes it.

    Constants lie in memory as they do here: kernels add in another order where their operands are
    aligned otherwise. A worker whose first evaluation differs from the one made here is not used.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        engine = evaluator.engine
        self._program = pickled(engine.function)
        self._candidates = engine.candidates
        self._samples = [engine.sample(i) for i in range(engine.samples)]
        self._profiles = [runtime.profile for runtime in engine.runtimes]
        self._of = evaluator.references, evaluator.metric, evaluator.targets, evaluator.sketch
        self._expected = _first(evaluator)

    def evaluator(self, cache_bytes: int | None) -> Evaluator | None:
        """The evaluator; None where this machine computes otherwise."""
        engine = Incremental(
            unpickled(self._program),
            self._candidates,
            self._samples,
            self._profiles,
            cache_bytes=cache_bytes,
        )
        references, metric, targets, sketch = self._of
        evaluator = Evaluator(engine, references, metric, targets)
        evaluator.sketch = sketch
        return evaluator if _first(evaluator) == self._expected else None


def _first(evaluator: Evaluator) -> bytes:
    """What all-FP16 gives for the first sample, to the bit."""
    executions = evaluator.engine.executions
    found = evaluator.evaluate(Precision.all_fp16(evaluator.engine.candidates), 0)
    evaluator.engine.executions = executions
    parts = [b"" if error is None else error.tobytes() for error in found.errors]
    return b"".join([repr(found.loss).encode(), *parts])


#: The evaluator of the last spec, in a worker's process.
_evaluators: list[tuple[Spec, Evaluator | None]] = []
_one = threading.Lock()


def _evaluate(
    spec: Spec, cache_bytes: int | None, precision: Precision, samples: Sequence[int], apart: bool
) -> list[Evaluation] | None:
    """Run in a worker, one call at a time whatever its threads."""
    with _one:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as where the search runs
        try:
            if not _evaluators or _evaluators[0][0] is not spec:
                _evaluators[:] = [(spec, spec.evaluator(cache_bytes))]
            evaluator = _evaluators[0][1]
            return None if evaluator is None else run(evaluator, precision, samples, apart)
        finally:
            torch.set_num_threads(threads)


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
