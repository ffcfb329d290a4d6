"""Optuna's storages: opened, created and found again, each failure in one line."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend

from ..errors import InputError
from ..files import first_line
from ..hints import option

#: The attribute under which a study's facts stand in the storage.
FACTS = "mpsearch"
#: Seconds to wait for a database that another process writes to.
_WAIT = 60.0
_JOURNAL = "journal:"


def anew() -> str:
    """What to do where a study is of something else."""
    return f"give what was given then, or leave {option('resume')} out to begin anew"


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
        return sqlite3.connect(file, timeout=_WAIT, check_same_thread=False)

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


def find(storage: optuna.storages.BaseStorage, facts: Mapping[str, str]) -> optuna.Study | None:
    """The last study of these facts; None where none is of this model and program at all.

    Raises
    ------
    InputError
        If there are some, and all were made otherwise.
    """
    other: Mapping[str, str] | None = None
    for summary in reversed(optuna.get_all_study_summaries(storage, include_best_trial=False)):
        found = summary.user_attrs.get(FACTS)
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
        raise InputError(f"cannot resume: {_differences(differ, other, facts)}; {anew()}")
    return None


def _differences(
    names: Iterable[str], then: Mapping[str, str], now: Mapping[str, str], longest: int = 24
) -> str:
    said = []
    for name in names:
        a, b = then.get(name, "none"), now.get(name, "none")
        short = len(a) <= longest and len(b) <= longest
        said.append(f"{name} was {a}, and is {b}" if short else f"{name} is another")
    return ", ".join(said)


def create(
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
