"""Workers that share nothing with a search but a storage of Optuna's and a copy of its folder.

What is to be evaluated stands in a study of its own, a waiting trial each. A worker makes it a
running one, which the storage lets only one of them do, evaluates it, and writes the answer into
it. Both sides count aloud while they live, so that the other notices an end without a common clock.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from ..files import written
from ..search.answer import Answer, read_answer
from ..search.answering import Answerer, Call
from ..search.store import open_storage, silence
from .bench import Bench

#: The file in a folder of benches that names the study of requests.
NAMED = "requests.json"
#: Of a request: what it is of, what is asked, and who has begun with it.
BENCH, CALL, BY = "bench", "call", "by"
#: Of the study: the signs of life of the search, and of each worker.
SEARCH, WORKER = "search", "worker "
#: Seconds between two signs of life, and until one who gave none counts as gone.
BEAT, _GONE = 1.0, 15.0
#: Seconds between two looks at the storage.
LOOK = 0.05
#: Requests that stand waiting, for each worker that lives: the one that it does, and the next.
_AHEAD = 2
#: Seats for workers that may yet come.
_SEATS = 32


class Board:
    """Gives the workers that live on a storage.

    Parameters
    ----------
    url
        The storage, as :func:`mpsearch.search.store.open_storage` takes it.
    folder
        Where the program and the samples are written, for workers to read.

    Raises
    ------
    InputError
        If the storage cannot be opened.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._folder = folder
        self._clear()  # of a search that was killed
        self._storage = open_storage(url)
        self._name = f"mpsearch requests {uuid.uuid4().hex}"
        with silence():
            self.study = optuna.create_study(study_name=self._name, storage=self._storage)
        self._beat = Beat(self.study, SEARCH)
        self._lives: dict[str, tuple[Any, float]] = {}
        self._trials: dict[int, optuna.trial.FrozenTrial] = {}
        self._looked = 0.0
        self._open: set[int] = set()

    def hire(self, answerer: Answerer) -> Sequence[Post]:
        """Workers that know the samples that there are now, once they have read them."""
        bench = Bench.of(answerer)
        bench.write(self._folder)
        with written(self._folder / NAMED, lambda _: None) as scratch:
            scratch.write_text(json.dumps({"study": self._name}), encoding="utf-8")
        return [Post(self, bench.digest, place) for place in range(_SEATS)]

    def look(self) -> None:
        """What has changed in the storage; nothing where it is away."""
        if time.monotonic() < self._looked + (LOOK if self._open else BEAT):
            return
        with contextlib.suppress(Exception):  # whatever the database's driver raises
            now = time.monotonic()
            found = self._storage.get_study_user_attrs(self.study._study_id)
            for name, count in found.items():
                if name.startswith(WORKER):
                    before = self._lives.get(name.removeprefix(WORKER))
                    if before is None or before[0] != count:
                        self._lives[name.removeprefix(WORKER)] = count, now
            trials = self._storage.get_all_trials(self.study._study_id, deepcopy=False)
            self._trials = {trial._trial_id: trial for trial in trials}
        self._looked = time.monotonic()

    def lives(self, worker: str) -> bool:
        """Whether a worker has given a sign of life of late."""
        found = self._lives.get(worker)
        return found is not None and time.monotonic() < found[1] + _GONE

    @property
    def workers(self) -> int:
        """How many live."""
        return sum(map(self.lives, self._lives))

    def ask(self, digest: str, call: Call) -> int | None:
        """Put up a request; its trial, None where the storage is away."""
        told = optuna.trial.create_trial(
            state=TrialState.WAITING, user_attrs={BENCH: digest, CALL: call.as_json()}
        )
        try:
            number = self._storage.create_new_trial(self.study._study_id, template_trial=told)
        except Exception:  # whatever the database's driver raises
            return None
        self._open.add(number)
        return number

    def trial(self, number: int) -> optuna.trial.FrozenTrial | None:
        """A request as it stood at the last look."""
        return self._trials.get(number)

    def withdraw(self, number: int) -> None:
        """Done with a request; it is taken down, if no worker has begun with it."""
        self._open.discard(number)
        known = self._trials.get(number)
        if known is not None and known.state.is_finished():
            return
        with contextlib.suppress(Exception):
            if self._storage.set_trial_state_values(number, TrialState.RUNNING):
                self._storage.set_trial_state_values(number, TrialState.FAIL)

    def close(self) -> None:
        """Take the study of requests down: workers end when it is gone."""
        self._beat.close()
        with contextlib.suppress(Exception):
            optuna.delete_study(study_name=self._name, storage=self._storage)
        self._clear()

    def _clear(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        for parent in (self._folder.parent, self._folder.parent.parent):
            with contextlib.suppress(OSError):  # there is something else in it
                parent.rmdir()


class Post:
    """Room for one request (:class:`mpsearch.search.ahead.Worker`)."""

    def __init__(self, board: Board, digest: str, place: int) -> None:
        self._board, self._digest, self._place = board, digest, place
        self._trial: int | None = None
        self._since = 0.0
        self.call: Call | None = None

    @property
    def alive(self) -> bool:
        """Whether there are workers enough for one more request."""
        self._board.look()
        return self._place < _AHEAD * self._board.workers

    @property
    def done(self) -> bool:
        """Whether there is an answer, or will be none."""
        self._board.look()
        found = None if self._trial is None else self._board.trial(self._trial)
        if self._trial is None or (found is not None and found.state.is_finished()):
            return True
        if found is None or found.state is TrialState.WAITING:
            return self._board.workers == 0
        by = found.user_attrs.get(BY)
        if by is None:  # it says so in its next step, unless it was killed before that
            return time.monotonic() > self._since + _GONE
        return not self._board.lives(by)

    def begin(self, call: Call) -> None:
        """Put up a request for this."""
        self.call, self._since = call, time.monotonic()
        self._trial = self._board.ask(self._digest, call)

    def result(self) -> Answer | None:
        """The answer; None where its worker was lost."""
        self.call = None
        found = None if self._trial is None else self._board.trial(self._trial)
        self.close()
        if found is None or found.state is not TrialState.COMPLETE:
            return None
        try:
            return read_answer(found.user_attrs)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    def wait(self, seconds: float) -> None:
        """Wait until it is done, so long at most."""
        until = time.monotonic() + seconds
        while not self.done and time.monotonic() < until:
            time.sleep(LOOK)

    def close(self) -> None:
        """Take the request down, if no worker has begun with it."""
        if self._trial is not None:
            self._board.withdraw(self._trial)
            self._trial = None


class Beat:
    """Counts aloud in a study, from a thread of its own."""

    def __init__(self, study: optuna.Study, name: str) -> None:
        self._study, self._name = study, name
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        count = 0
        while True:
            with contextlib.suppress(Exception):  # the storage is away, or the study gone
                self._study._storage.set_study_user_attr(self._study._study_id, self._name, count)
            count += 1
            if self._end.wait(BEAT):
                return

    def close(self) -> None:
        """Count no more."""
        self._end.set()
        self._thread.join()
