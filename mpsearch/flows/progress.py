"""The progress bar of a search: what is being done, the best so far, the time left."""

from __future__ import annotations

import logging
import sys
import threading
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from ..search.search import Search, Trial

#: Says at INFO what is being done, at DEBUG what each evaluation gave.
_LOG = logging.getLogger("mpsearch")
#: Seconds after which the time shown moves on, whatever is being done.
_TICK = 0.5


class Progress:
    """A bar on stderr, silent where stderr is no terminal (unless ``show`` says otherwise).

    Loads neither torch nor coremltools, so that it can say that they are being loaded.
    """

    def __init__(self, show: bool | None = None) -> None:
        self._on = sys.stderr.isatty() if show is None else show
        self._bar: Any = None
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._ticking: threading.Thread | None = None

    def stage(self, text: str) -> None:
        """Say what is being done now."""
        _LOG.info("%s", text)
        if not self._on:
            return
        with self._lock:
            self._open(None)
            self._bar.set_description_str(text)
        if self._ticking is None:
            self._ticking = threading.Thread(target=self._tick, daemon=True)
            self._ticking.start()

    def trial(self, trial: Trial, search: Search) -> None:
        """Show one more trial."""
        _LOG.debug(
            "%s: %d ops in FP32, loss %.3g, %s",
            *(trial.asked_by, trial.fp32_ops, trial.loss, "met" if trial.met else "not met"),
        )
        if not self._on:
            return
        best = search.best
        known = "none yet" if best is None else f"{best.price:g}"
        with self._lock:
            self._open(search.allowed)
            done = len(search.trials)
            self._bar.update(done - self._bar.n)
            self._bar.set_description_str(f"{trial.asked_by}: best {known}", refresh=False)

    def close(self) -> None:
        """Remove the bar."""
        self._done.set()
        if self._ticking is not None:
            self._ticking.join()
        with self._lock:
            self._remove()

    def _open(self, total: int | None) -> None:
        if self._bar is None or self._bar.total != total:
            self._remove()
            form = None if total else "{desc} [{elapsed}]"
            self._bar = tqdm(total=total, leave=False, dynamic_ncols=True, bar_format=form)

    def _remove(self) -> None:
        if self._bar is not None:
            self._bar.refresh()  # what a short stage did is shown once, at least
            self._bar.close()
            self._bar = None

    def _tick(self) -> None:
        while not self._done.wait(_TICK):
            with self._lock:
                if self._bar is not None:
                    self._bar.refresh()
