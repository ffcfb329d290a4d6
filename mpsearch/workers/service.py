"""The life of ``mpsearch worker``: evaluates what a search asks for, until it ends."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from ..ending import Ending, Stop
from ..errors import InputError, MpsearchError
from ..files import first_line, read_json
from ..search.answer import attributes
from ..search.answering import Answerer, Call
from ..search.store import open_storage, silence
from .bench import Bench, benches
from .requests import BENCH, BY, CALL, LOOK, NAMED, SEARCH, WORKER, Beat

_log = logging.getLogger("mpsearch")

#: Seconds between two looks where there is nothing to do yet.
_PAUSE = 0.5


class Service:
    """Evaluates what stands on a :class:`mpsearch.workers.requests.Board`.

    Parameters
    ----------
    folder
        Where the search has written its program and samples, or a copy.
    url
        The search's storage.
    ending
        When to end, whatever the search does.
    metric
        ``package.module:callable`` where the search has a metric of its own.
    cache_bytes
        Limit for remembered results.
    patience
        Seconds to wait for a search to begin, and for a sign of life of it.
    tell
        Called with what is being done.

    Raises
    ------
    InputError
        If the storage cannot be opened, no search begins, the folder holds something else, or this
        machine computes otherwise than the one that searches.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        ending: Ending,
        metric: str | None = None,
        cache_bytes: int | None = None,
        patience: float = 60.0,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._folder, self._ending, self._tell = folder, ending, tell
        self._out = folder.parent.parent  # as the user gave it
        self._metric, self._bytes, self._patience = metric, cache_bytes, patience
        self._storage = open_storage(url)
        self._name = uuid.uuid4().hex
        #: By what it evaluates for: one at a time, since weights and results take memory.
        self._held: tuple[str, Answerer] | None = None
        self._heard: tuple[object, float] = (None, time.monotonic())

    def run(self) -> int:
        """Evaluate until the search ends; how many evaluations that were."""
        study = self._study()
        if study is None:
            return 0
        served, idle = 0, LOOK
        beat = Beat(study, f"{WORKER}{self._name}")
        try:
            while not self._ending.over and self._searching(study):
                trial = self._next(study)
                if trial is None:
                    time.sleep(idle)
                    idle = min(2 * idle, _PAUSE)
                    continue
                idle = LOOK
                if self._evaluated(trial):
                    served += 1
                    self._tell(f"{served} evaluations")
        except Stop:
            pass
        finally:
            beat.close()
        return served

    def _study(self) -> optuna.Study | None:
        """The study of requests, once it is there; None if the run is to end."""
        until = time.monotonic() + self._patience
        self._tell("waiting for a search")
        while not self._ending.over:
            with contextlib.suppress(InputError, KeyError, TypeError):
                name = str(read_json(self._folder / NAMED, "a folder")["study"])
                with silence():
                    return optuna.load_study(study_name=name, storage=self._storage)
            if time.monotonic() > until:
                raise InputError(
                    f"no search is under way in {self._out} with this storage; start "
                    "mpsearch optimize --out DIR --storage URL --cluster storage first"
                )
            time.sleep(_PAUSE)
        return None

    def _searching(self, study: optuna.Study) -> bool:
        """Whether the search lives, as far as is known; while the storage is away, it may."""
        try:
            said = self._storage.get_study_user_attrs(study._study_id).get(SEARCH)
        except KeyError:
            return False  # it has ended, and taken its requests down
        except Exception as error:  # whatever the database's driver raises
            self._tell(f"the storage is away ({first_line(error)})")
            time.sleep(_PAUSE)
            said = self._heard[0]
        if said != self._heard[0]:
            self._heard = said, time.monotonic()
        return time.monotonic() < self._heard[1] + self._patience

    def _next(self, study: optuna.Study) -> FrozenTrial | None:
        """The first request that waits."""
        try:
            waiting = self._storage.get_all_trials(
                study._study_id, deepcopy=False, states=(TrialState.WAITING,)
            )
        except Exception:  # it is away, or the search has ended: `_searching` says which
            return None
        return min(waiting, key=lambda trial: trial.number, default=None)

    def _evaluated(self, trial: FrozenTrial) -> bool:
        """Whether a request was ours to evaluate, and was."""
        answerer = self._answerer(str(trial.user_attrs.get(BENCH)))
        try:
            if not self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                return False
        except Exception:  # another has it, or the search has taken it down
            return False
        try:
            self._storage.set_trial_user_attr(trial._trial_id, BY, self._name)
            answer = answerer.ahead(Call.from_json(trial.user_attrs[CALL]))
            for key, value in attributes(answer).items():
                self._storage.set_trial_user_attr(trial._trial_id, key, value)
            done = TrialState.COMPLETE
        except (Stop, MpsearchError):
            self._told(trial, TrialState.FAIL)
            raise
        except Exception as error:  # the search evaluates it itself, and says what it is
            _log.warning("a request could not be answered: %s", first_line(error))
            done = TrialState.FAIL
        return self._told(trial, done) and done is TrialState.COMPLETE

    def _told(self, trial: FrozenTrial, state: TrialState) -> bool:
        values = [0.0] if state is TrialState.COMPLETE else None
        try:
            return self._storage.set_trial_state_values(trial._trial_id, state, values)
        except Exception:  # it is away, or the search has ended
            return False

    def _answerer(self, digest: str) -> Answerer:
        """What evaluates for a bench.

        Raises
        ------
        InputError
            If the folder does not hold it.
        """
        if self._held is None or self._held[0] != digest:
            self._held = None
            self._tell("reading the program and the samples")
            place = benches(self._folder).get(digest)
            if place is None:
                raise InputError(
                    f"{self._out} is not what the search works on, or no longer; copy "
                    "its folder again, and start the worker anew"
                )
            bench = Bench.read(place, self._metric)
            self._held = digest, bench.answerer(cache_bytes=self._bytes, ending=self._ending)
        return self._held[1]
