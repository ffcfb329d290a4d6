"""Keeps every evaluation as it is made: a search that ended, in whatever way, goes on from there.

A search is deterministic: what it asks next follows from the answers so far. So going on is
searching again from the start with the answers that were kept, each found by what was asked: the
set, the samples in their order, and the limit. What the clock cut short is not kept.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend

from ..ending import Stop
from ..errors import InputError
from ..files import first_line
from .answer import Answer, attributes, read_answer
from .latest import Latest

#: The attributes under which what a trial answers, and a study's facts, stand in the storage.
_CALL, _FACTS = "call", "mpsearch"
#: How long to wait for a storage that is away, and how often to look.
_PATIENCE, _AGAIN = 60.0, 0.5
_JOURNAL = "journal:"


class Store:
    """The evaluations of a search in a study of Optuna's that outlives the process.

    Parameters
    ----------
    url
        As :func:`open_storage` takes it.
    name
        The study's name; a number is added where there is one of that name.
    facts
        What the answers depend on: two searches of which they are equal give the same answers.
    about
        What optuna-dashboard is to say of the study.
    resume
        Go on with the last study of the same facts, where there is one.
    over
        Whether the run is to end, so that there is no waiting for a storage that is away.

    Attributes
    ----------
    known
        How many evaluations were there at first.

    Raises
    ------
    InputError
        If the storage cannot be opened, or ``resume`` finds only studies of this model that were
        made otherwise; it says what differs.
    """

    def __init__(
        self,
        url: str,
        name: str,
        facts: Mapping[str, str],
        about: Mapping[str, Any],
        resume: bool = False,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._over = over
        self._answers: dict[str, Answer] = {}
        storage = open_storage(url)
        try:
            study = _same(storage, facts) if resume else None
        except InputError:
            raise
        except Exception as error:  # whatever a damaged study makes of Optuna
            raise InputError(f"cannot resume: {first_line(error)}; {_ANEW}") from error
        self._study = study or _created(storage, name, {**about, _FACTS: dict(facts)})
        if study is not None:
            try:
                for trial in study.get_trials(deepcopy=False):
                    asked = trial.user_attrs.get(_CALL)
                    if asked is not None:
                        self._answers[str(asked)] = read_answer(trial.user_attrs)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise InputError(
                    f"cannot resume: the study {study.study_name!r} holds what mpsearch did not "
                    "write; leave --resume out to begin anew"
                ) from error
        self._latest = Latest(_file(url), self.name)
        self._unstored = self._latest.take() if study is not None else {}
        self._unstored = {k: v for k, v in self._unstored.items() if k not in self._answers}
        self._answers |= self._unstored
        self.known = len(self._answers)
        self._lost = False

    @property
    def name(self) -> str:
        """The study's name in the storage."""
        return self._study.study_name

    def recall(self, asked: str) -> Answer | None:
        """What this gave before, if it was asked."""
        return self._answers.get(asked)

    def hold(self, asked: str, answer: Answer) -> None:
        """Keep a new answer until :meth:`keep` has stored it, beside an SQLite study."""
        if asked not in self._answers and not self._lost:
            self._latest.put(asked, answer)

    def keep(self, asked: str, answer: Answer, trial: optuna.trial.FrozenTrial) -> None:
        """Keep an answer, with the trial that it is of; one that is known already is not again.

        Waits up to a minute for a storage that is away.

        Raises
        ------
        Lost
            If it does not come back; nothing more is kept then.
        """
        if (asked in self._answers and asked not in self._unstored) or self._lost:
            return
        told_of = {**trial.user_attrs, _CALL: asked, **attributes(answer)}
        told = optuna.trial.create_trial(
            value=trial.value,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=told_of,
            system_attrs=trial.system_attrs,
        )
        told.datetime_start, told.datetime_complete = trial.datetime_start, trial.datetime_complete
        self._patiently(lambda: self._study.add_trial(told))
        self._answers[asked] = answer
        self._unstored.pop(asked, None)
        self._latest.clear()

    def _patiently(self, work: Callable[[], object]) -> None:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                work()
                return
            except Exception as error:  # whatever the database's driver raises
                if self._over() or time.monotonic() > until or _full(error):
                    self._lost = True
                    raise Lost(
                        f"The study could not be kept ({first_line(error)}); what was found until "
                        "then was, and --resume goes on from there."
                    ) from error
            time.sleep(_AGAIN)


class Lost(Stop):
    """A storage went away and did not come back; its text says so to people."""


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """Optuna's storage at ``sqlite:///FILE``, ``postgresql://...``, or ``journal:FILE``.

    Raises
    ------
    InputError
        If it cannot be opened.
    """
    try:
        if url.startswith(_JOURNAL):
            backend = JournalFileBackend(url.removeprefix(_JOURNAL))
            return optuna.storages.JournalStorage(backend)
        file = _file(url)
        if file is not None:
            if not file.exists():
                # Tables are made in steps: a process killed between them would leave half of them.
                fresh = file.with_name(f"{file.name}.new")
                fresh.unlink(missing_ok=True)
                _sqlite(fresh).engine.dispose()
                os.replace(fresh, file)
            _check_tables(file)
            return _sqlite(file)
        return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except InputError:
        raise
    except ImportError as error:
        raise InputError(
            f"storage {url!r} needs a driver that is not installed; for PostgreSQL run pip install "
            "mpsearch[postgresql], for MySQL pip install pymysql"
        ) from error
    except Exception as error:  # whatever the database's driver raises
        raise InputError(
            f"storage {url!r} cannot be opened ({first_line(error)}); give a URL such as "
            "sqlite:///study.db, postgresql://user@host/name or journal:study.log"
        ) from error


def _sqlite(file: Path) -> optuna.storages.RDBStorage:
    """A file, whatever its path holds: in a URL, ``?``, ``#`` and ``%`` would mean something."""
    from sqlalchemy.pool import NullPool  # an eighth of a second

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(file, timeout=_PATIENCE, check_same_thread=False)

    # Nothing stays open, so that the folder can be moved.
    options = {"poolclass": NullPool, "creator": connect}
    return optuna.storages.RDBStorage("sqlite://", engine_kwargs=options)


def _check_tables(file: Path) -> None:
    """That a database holds tables and indices alone: views and triggers run without an end.

    Raises
    ------
    InputError
        If it holds something else.
    """
    with contextlib.closing(sqlite3.connect(file)) as found:
        names = found.execute("select type, name from sqlite_master").fetchall()
    for kind, name in names:
        if kind not in ("table", "index"):
            raise InputError(
                f"{file} holds the {kind} {str(name)[:40]!r}, which no study does; give another "
                "storage"
            )


def check_storage(url: str | None) -> None:
    """Fail early where a storage cannot be opened.

    Raises
    ------
    InputError
        With the reason.
    """
    if url is not None:
        storage = open_storage(url)
        if isinstance(storage, optuna.storages.RDBStorage):
            storage.engine.dispose()  # a database takes only so many connections


def _file(url: str) -> Path | None:
    """The file of an SQLite storage; None of others."""
    path = url.removeprefix("sqlite:///")
    query = re.search(r"\?[^/]*=[^/]*$", path)
    return None if path == url or not path or query or path == ":memory:" else Path(path)


def _full(error: BaseException) -> bool:
    """Whether waiting will not help."""
    said = str(error).lower()
    return "disk is full" in said or "no space left" in said or "readonly database" in said


def _same(storage: optuna.storages.BaseStorage, facts: Mapping[str, str]) -> optuna.Study | None:
    """The last study of these facts; None where none is of this model and program at all.

    Raises
    ------
    InputError
        If there are some, and all were made otherwise.
    """
    other: Mapping[str, str] | None = None
    for summary in reversed(optuna.get_all_study_summaries(storage, include_best_trial=False)):
        found = summary.user_attrs.get(_FACTS)
        if not isinstance(found, dict):
            continue
        if found == dict(facts):
            with silence():
                return optuna.load_study(study_name=summary.study_name, storage=storage)
        kin = all(found.get(name) == facts.get(name) for name in ("name", "changes"))
        other = other or (found if kin else None)
    if other is not None:
        names = [*facts, *(name for name in other if name not in facts)]
        differ = [name for name in names if facts.get(name) != other.get(name)]
        raise InputError(f"cannot resume: {_differences(differ, other, facts)}; {_ANEW}")
    return None


_ANEW = "give what was given then, or leave --resume out to begin anew"


def _differences(
    names: Iterable[str], then: Mapping[str, str], now: Mapping[str, str], longest: int = 24
) -> str:
    said = []
    for name in names:
        a, b = then.get(name, "none"), now.get(name, "none")
        short = len(a) <= longest and len(b) <= longest
        said.append(f"{name} was {a}, and is {b}" if short else f"{name} is another")
    return ", ".join(said)


def _created(
    storage: optuna.storages.BaseStorage, name: str, about: Mapping[str, Any]
) -> optuna.Study:
    number = 1
    while True:
        try:
            with silence():
                study = optuna.create_study(
                    study_name=name if number == 1 else f"{name} ({number})",
                    storage=storage,
                    direction="minimize",
                )
        except optuna.exceptions.DuplicatedStudyError:
            number += 1
            continue
        except Exception as error:  # whatever the database's driver raises
            raise InputError(f"the study cannot be kept: {first_line(error)}") from error
        for key, fact in about.items():
            study.set_user_attr(key, fact)
        return study


@contextmanager
def silence() -> Iterator[None]:
    """Optuna says that it made or found a study; the user asked for something else."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
