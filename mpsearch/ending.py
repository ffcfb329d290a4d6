"""When a run ends: its deadline, and what the user's signals mean at each stage."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class Stop(Exception):  # noqa: N818 - a signal, as StopIteration is
    """The trials or the time are used up, or the user interrupted. Strategies let it pass."""


class Stage(Enum):
    """What a run is doing, and so what may still end it."""

    PREPARE = "nothing is known yet: a signal ends the run"
    SEARCH = "a set is known that meets the budget: a signal, or the deadline, ends the search"
    WRITE = "what was found is written: nothing ends that but a third signal"
    EXTRAS = "what only the report needs: a second signal, or the deadline, ends it"


class Ending:
    """Says when to stop. Work asks :meth:`check` at least once for each forward of one sample.

    Parameters
    ----------
    timeout
        Seconds from :meth:`start`, which is called when the model has been converted.

    Attributes
    ----------
    reason
        Why the search ended where that was neither its time nor a signal; empty otherwise.
    """

    def __init__(self, timeout: float | None = None) -> None:
        self.stage = Stage.PREPARE
        self._timeout = math.inf if timeout is None else timeout
        self._deadline = math.inf
        self._signals = 0
        self.reason = ""
        self._late = False

    def start(self) -> None:
        """The time allowed begins."""
        self._deadline = time.monotonic() + self._timeout

    @property
    def limited(self) -> bool:
        """Whether there is a deadline at all."""
        return math.isfinite(self._deadline)

    @property
    def left(self) -> float:
        """Seconds left."""
        return self._deadline - time.monotonic()

    @property
    def over(self) -> bool:
        """Whether the search is to end, or was ended."""
        return self._signals > 0 or self.left < 0

    @property
    def hurry(self) -> bool:
        """Whether what only the report needs is to be left out."""
        return self._signals > 1 or self._late or self.left < 0

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the search."""
        return self._signals > 0 and not self.reason

    def give_up(self, reason: str) -> None:
        """End the search now, for a reason that people are told."""
        self._signals = max(self._signals, 1)
        self.reason = self.reason or reason

    def after(self, share: float) -> Callable[[], bool]:
        """Whether, when asked, this share of the time left now is used up, or the run is over."""
        until = time.monotonic() + share * self.left
        return lambda: time.monotonic() > until or (self.over and self.stage is not Stage.PREPARE)

    def check(self) -> None:
        """Raise :class:`Stop` where what is being done is to end."""
        if self.stage is Stage.SEARCH and self.over:
            raise Stop
        if self.stage is Stage.EXTRAS and self.hurry:
            raise Stop

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals that Python code handles now; those ignored or left to the system stay.

        While nothing is known yet, and from the third signal on, who handled them before does.
        Only in the main thread, where Python delivers signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {s: signal.getsignal(s) for s in _SIGNALS}
        mine = [s for s, handler in before.items() if callable(handler)]

        def heard(number: int, frame: Any) -> None:
            self._signals += 1
            self._late |= self.stage is Stage.EXTRAS
            if self.stage is Stage.PREPARE or self._signals > 2:
                before[number](number, frame)

        for number in mine:
            signal.signal(number, heard)
        try:
            yield
        finally:
            for number in mine:
                signal.signal(number, before[number])
