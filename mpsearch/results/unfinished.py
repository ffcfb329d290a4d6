"""The study of a search under way, in the folder that its result will take."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path

from ..errors import InputError
from ..files import SEARCH, SEARCH_LOCK, SEARCH_MARK, is_search, put_back, unwritable
from ..temporary import hold

#: The study in the folder of a result.
STUDY = "study.db"
#: Bytes of a path, with what SQLite adds for its journal (``MAX_PATHNAME`` is 512 on Unix).
_LONGEST = 500


class Unfinished:
    """``OUT/.search``, with a study in SQLite, held by one process at a time.

    A former result in ``OUT`` stays as it is. When a new one takes its place, the study goes into
    it; until then another run can go on with it, in whatever way this one ended.

    Parameters
    ----------
    out
        The folder that the result will take.
    resume
        Keep what is there: the study of a search that was cut short, or of the result in ``out``.

    Attributes
    ----------
    study
        The study's file.
    done
        Whether nothing is left to go on with.

    Raises
    ------
    InputError
        If it cannot be made, or another process is searching there.
    """

    def __init__(self, out: Path, resume: bool) -> None:
        self.done = False
        self._copied = 0  # evaluations that the result in ``out`` holds as well
        self._out = Path(os.path.abspath(out))
        self._folder = self._out / SEARCH
        self.study = self._folder / STUDY
        size = len(os.fsencode(self.study))
        if size > _LONGEST:
            raise InputError(
                f"{str(self._out)[:100]}... is too long: its study would have a path of {size} "
                f"bytes, and SQLite takes {_LONGEST}; write elsewhere"
            )
        put_back(self._out)
        made = (self._folder, self._out, *self._out.parents)
        self._made = [path for path in made if not path.exists()]
        try:
            self._check_ours()
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self._folder / SEARCH_LOCK).open("a")
            self._hold()
            if not is_search(self._folder):
                self._lock.write(SEARCH_MARK)
                self._lock.flush()
            if not resume:
                for left in self._folder.glob(f"{STUDY}*"):
                    left.unlink()
            elif not self.study.exists() and _is_file(self._out / STUDY):
                fresh = self.study.with_name(f"{STUDY}.new")
                copy(self._out / STUDY, fresh)
                os.replace(fresh, self.study)
                self._copied = _trials(self.study)
        except OSError as error:
            self._remove_made()
            raise unwritable(self._folder, error) from error

    def _remove_made(self) -> None:
        """Remove the folders that were made for it, as far as nothing is in them."""
        for path in self._made:
            with contextlib.suppress(OSError):
                path.rmdir()

    def _check_ours(self) -> None:
        """Fail where a folder of this name is not one that mpsearch made.

        A process that was killed at once may have left it empty, or with an empty lock.
        """
        folder = self._folder
        if folder.is_symlink() or (folder.exists() and not is_search(folder)):
            left = [] if folder.is_symlink() else list(folder.iterdir())
            empty = all(
                p.name == SEARCH_LOCK and _is_file(p) and not p.stat().st_size for p in left
            )
            if folder.is_symlink() or not empty:
                raise InputError(
                    f"{folder} is not a folder that mpsearch made, or holds a link; move it, or "
                    "write elsewhere"
                )

    def _hold(self) -> None:
        try:
            hold(self._lock)
        except BlockingIOError as error:
            self._lock.close()
            raise InputError(
                f"another run is searching into {self._out}; wait for it, or write elsewhere"
            ) from error

    @property
    def url(self) -> str:
        """The study, as a storage."""
        return f"sqlite:///{self.study}"

    def close(self) -> None:
        """Let it go; a study stays that holds something for another run to go on with."""
        if self.done or _trials(self.study) <= self._copied:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._made = self._made or [self._out]
            self._remove_made()
        self._lock.close()


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def copy(study: Path, to: Path) -> None:
    """Copy a study as it stands, while it may be in use.

    Raises
    ------
    OSError
        If it cannot be read or written.
    """
    to.unlink(missing_ok=True)
    try:
        with (
            contextlib.closing(sqlite3.connect(study)) as a,
            contextlib.closing(sqlite3.connect(to)) as b,
        ):
            a.backup(b)
    except sqlite3.Error as error:
        raise OSError(str(error)) from error


def _trials(study: Path) -> int:
    """How many evaluations a study holds."""
    if not study.exists():
        return 0
    try:
        with contextlib.closing(sqlite3.connect(study)) as found:
            table = "select count(*) from sqlite_master where name = 'trials' and type = 'table'"
            if not found.execute(table).fetchone()[0]:
                return 0
            return int(found.execute("select count(*) from trials").fetchone()[0])
    except sqlite3.Error:
        return 0
