"""Temporary folders that do not outlive their process.

A folder holds a marker, which says what made it and which folder it is, and which its process
locks as long as it lives. What a process that was killed has left is removed by the next one; a
folder without such a marker, or with a copy of one, is never touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not a Unix: folders are then not locked, and those left behind not removed
    fcntl = None  # type: ignore[assignment]

_MARKER = ".mpsearch-temporary"
#: A folder has this name until it is marked.
_UNMARKED = ".mpsearch-unmarked-"
_PREFIX = "mpsearch-"
#: What stands in a folder while two renames are under way: the former output, and its name.
FORMER = "former"
#: Those that this process holds, to be removed where it ends at once.
_held: set[weakref.finalize] = set()


class TemporaryFolder:
    """A temporary folder in ``parent``, removed when it is closed, let go, or the program ends.

    Parameters
    ----------
    parent
        Where to make it; default: where :mod:`tempfile` puts things.
    prefix
        How its name begins. Folders of this prefix that killed processes left are removed first.

    Raises
    ------
    OSError
        If it cannot be made.
    """

    def __init__(self, parent: Path | None = None, prefix: str = _PREFIX) -> None:
        parent = Path(tempfile.gettempdir()) if parent is None else parent
        remove_left(parent, prefix)
        self.path, marker = _marked(parent, prefix)
        self._remove = weakref.finalize(self, _remove, self.path, marker, os.getpid())
        _held.add(self._remove)

    def close(self) -> None:
        """Remove it now."""
        self._remove()
        _held.discard(self._remove)


def _marked(parent: Path, prefix: str) -> tuple[Path, IO[str]]:
    """A new folder and its open, locked marker."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=_UNMARKED, dir=parent))
        try:
            marker = (made / _MARKER).open("x")
            hold(marker)
            marker.write(_mark(made))
            marker.flush()
            path = parent / f"{prefix}{made.name.removeprefix(_UNMARKED)}"
            os.rename(made, path)
        except (FileNotFoundError, BlockingIOError):  # another process has just removed it
            continue
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        return path, marker


def _mark(folder: Path) -> str:
    """What the marker of a folder says: a copy of it does not speak for another folder."""
    found = folder.stat()
    return f"A temporary folder of mpsearch: {found.st_dev}:{found.st_ino}\n"


def _remove(path: Path, marker: IO[str], process: int) -> None:
    if os.getpid() == process:  # a fork holds the same folder and does not own it
        _clear(path)
    marker.close()


def _clear(path: Path) -> None:
    """Remove a folder, its marker last: of a process killed meanwhile it says whose the rest was.

    A former output in it goes back to where it was, unless a new one has taken its place.
    """
    with contextlib.suppress(OSError):
        for former in (path / FORMER).glob("*"):
            if not (path.parent / former.name).exists():
                os.rename(former, path.parent / former.name)
        for entry in list(os.scandir(path)):
            if entry.name == _MARKER:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
        # Under the name of a folder that need not be marked, for the marker goes first.
        last = path.with_name(f"{_UNMARKED}{path.name.rpartition('-')[2]}")
        os.rename(path, last)
        path = last
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def temporary_folder(parent: Path, prefix: str = _PREFIX) -> Iterator[Path]:
    """A :class:`TemporaryFolder` for the length of a block."""
    made = TemporaryFolder(parent, prefix)
    try:
        yield made.path
    finally:
        made.close()


@contextlib.contextmanager
def own_temporary_folder() -> Iterator[Path]:
    """A folder for everything temporary that this process and its libraries make.

    For programs, not for libraries: it sets where :mod:`tempfile` puts things.
    """
    before = tempfile.tempdir
    with temporary_folder(Path(tempfile.gettempdir())) as made:
        tempfile.tempdir = str(made)
        try:
            yield made
        finally:
            tempfile.tempdir = before


def remove_held() -> None:
    """Remove all that this process holds, where it is about to end without unwinding."""
    for remove in list(_held):
        remove()


def hold(lock: IO[str]) -> None:
    """Lock an open file until it is closed; where files cannot be locked, nothing.

    Raises
    ------
    BlockingIOError
        If another process holds it.
    """
    if fcntl is not None:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_left(parent: Path, prefix: str) -> None:
    """Remove what killed processes left of a prefix, and put back an output they had moved away."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(parent)):
            if not entry.is_dir(follow_symlinks=False):
                continue
            if entry.name.startswith(prefix):
                _remove_left(Path(entry.path))
            elif entry.name.startswith(_UNMARKED):
                _remove_unmarked(Path(entry.path))


def _remove_left(left: Path) -> None:
    marker = left / _MARKER
    with contextlib.suppress(OSError, ValueError):
        if marker.is_symlink() or left.stat().st_uid != os.getuid():
            return
        with marker.open("r+") as lock:
            hold(lock)
            if lock.read(200) != _mark(left):
                return
            _clear(left)


def _remove_unmarked(left: Path) -> None:
    """Remove a folder of a process that was killed before it put something in, or at the end."""
    marker = left / _MARKER
    with contextlib.suppress(OSError, ValueError):
        if marker.is_file() and not marker.is_symlink():
            with marker.open("r+") as lock:
                hold(lock)
                if lock.read(200) in ("", _mark(left)):
                    marker.unlink()
        left.rmdir()
