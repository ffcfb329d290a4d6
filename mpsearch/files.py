"""Files: what may be read, how outputs are written whole, and where temporary ones stand."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import json
import os
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import InputError
from .temporary import FORMER, remove_left, temporary_folder

#: An archive may always unpack to so many bytes, and to so many times its own size.
_UNPACKED, _RATIO = 1 << 30, 20
_BLOCK = 1 << 20
#: What zipfile raises of archives that are damaged.
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError, ValueError)


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its type where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def printable(text: str) -> str:
    """``text`` with whatever could steer a terminal or turn the line around spelled out.

    Names of ops, layers and files come from models: they are data wherever they are shown.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


# --- reading ---------------------------------------------------------------------------------


#: What is given for a model, and for samples.
MODEL_FILE = "a model file, an .mlpackage or package.module:factory"
SAMPLE_FILE = "a .npz, .pt or .safetensors file keyed by input name, or package.module:callable"


def regular(path: str | Path, give: str) -> Path:
    """``path``, which is a file that can be opened without waiting.

    Raises
    ------
    InputError
        If it does not exist, in which case ``give`` says what to give, or is a folder, a pipe or a
        device.
    """
    file = Path(path)
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError) as error:
        reason = (
            "does not exist"
            if isinstance(error, (FileNotFoundError, NotADirectoryError))
            else f"cannot be read ({getattr(error, 'strerror', None) or error})"
        )
        raise InputError(f"{file} {reason}; give {give}") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no file but a pipe or a device"
        raise InputError(f"{file} is {kind}; give {give}")
    return file


def is_archive(file: Path) -> bool:
    """Whether a file is a zip archive, a broken one perhaps."""
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:  # of an end record that makes no sense
        return True


def check_archive(file: Path) -> None:
    """That a zip archive is as it was written, and does not unpack to far more than it holds.

    torch does not look at checksums: of a size that is damaged it makes gigabytes. Archives that
    it wrote without any (``compute_crc32``) hold 0 for them.

    Raises
    ------
    InputError
        If it unpacks to more than 1 GiB and twenty times its size, is damaged, or is no archive.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
            if unpacked <= max(_UNPACKED, _RATIO * file.stat().st_size):
                for info in archive.infolist():
                    with archive.open(info) if info.CRC else io.BytesIO() as stream:
                        while stream.read(_BLOCK):
                            pass
    except _BROKEN as error:
        raise InputError(f"{file} is a broken archive: {first_line(error)}") from error
    if unpacked > max(_UNPACKED, _RATIO * file.stat().st_size):
        raise InputError(
            f"{file} unpacks from {file.stat().st_size:,} to {unpacked:,} bytes, expected at most "
            f"{_UNPACKED:,} or {_RATIO} times its size; save it uncompressed"
        )


def read_json(path: Path, give: str) -> Any:
    """What a JSON file holds.

    Raises
    ------
    InputError
        If the file is missing, in which case ``give`` says what to give, or is no JSON.
    """
    file = regular(path, give)
    try:
        return json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no JSON: {first_line(error)}") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}; give {give}") from error


def _no_constant(text: str) -> Any:
    raise ValueError(f"it holds {text}, which is no number in JSON")


# --- writing ---------------------------------------------------------------------------------

Ours = Callable[[Path], str | None]


@contextlib.contextmanager
def written(path: Path, ours: Ours) -> Iterator[Path]:
    """A temporary path that becomes ``path`` when the block ends well.

    What stood there before is exchanged for it in one step where the system can do that, and is
    removed; whatever goes wrong, one of the two is there, whole.

    Parameters
    ----------
    ours
        Says why what stands at a path is not to be replaced; None where it may be.

    Raises
    ------
    InputError
        If ``path`` cannot be written, or holds what is not ours.
    """
    path = Path(os.path.abspath(path))
    check_replaceable(path, ours)
    parents = [p for p in path.parents if not p.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(path.parent, _prefix_of(path)) as made:
            scratch = made / path.name
            yield scratch
            check_replaceable(path, ours)
            _publish(scratch, path, made)
    except BaseException as error:
        for parent in parents:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise


def unwritable(path: Path, error: OSError) -> InputError:
    """The error for a path that the system refuses to write."""
    reason = error.strerror or first_line(error)
    return InputError(f"cannot write {path}: {reason}; make room, or write elsewhere")


def check_replaceable(path: Path, ours: Ours) -> None:
    """Fail where something stands at ``path`` that is not to be replaced.

    Raises
    ------
    InputError
        With the reason.
    """
    if path.is_symlink() or path.exists():
        reason = "it is a link" if path.is_symlink() else ours(path)
        if reason is not None:
            raise InputError(f"{path} is not replaced: {reason}; move it, or write elsewhere")


def check_writable(path: Path, ours: Ours) -> None:
    """Fail before the work rather than after it.

    Raises
    ------
    InputError
        If ``path`` cannot be made, or holds what is not ours.
    """
    if "\0" in str(path) or not path.name:
        raise InputError(f"{str(path)!r} names no file or folder; write elsewhere")
    path = Path(os.path.abspath(path))
    try:
        check_replaceable(path, ours)
        parent = path.parent
        missing = []
        while not parent.exists():
            missing.append(parent.name)
            parent = parent.parent
        if not parent.is_dir():
            raise InputError(f"cannot write to {parent}: it is no folder; write elsewhere")
        # Names as long as those that writing will make, in a folder that is gone again at once.
        with temporary_folder(parent, _prefix_of(path)) as probe:
            for name in missing:
                (probe / name).mkdir(exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def _publish(scratch: Path, path: Path, made: Path) -> None:
    if not path.exists():
        os.rename(scratch, path)
        return
    if _exchange(scratch, path):
        return
    # Two renames. Killed between them, the former output stands in the temporary folder under a
    # name that the next run knows (see remove_left).
    former = made / FORMER
    former.mkdir()
    os.rename(path, former / path.name)
    try:
        os.rename(scratch, path)
    except BaseException:
        os.rename(former / path.name, path)
        raise


def put_back(path: Path) -> None:
    """Put back an output that a process was killed in replacing, and remove what it left."""
    remove_left(path.parent, _prefix_of(path))


def _prefix_of(path: Path) -> str:
    """How temporary folders beside an output begin: no longer than any name may be."""
    return f".mpsearch-{zlib.crc32(os.fsencode(path.name)):08x}-"


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two paths in one step; False where the system cannot."""
    call = _exchanger()
    return call is not None and call(os.fsencode(a), os.fsencode(b)) == 0


@functools.cache
def _exchanger() -> Callable[[bytes, bytes], int] | None:
    """``renameat2`` with RENAME_EXCHANGE (Linux), ``renamex_np`` with RENAME_SWAP (macOS)."""
    library = ctypes.CDLL(None, use_errno=True)
    at_cwd, swap = -100, 2
    try:
        if sys.platform == "darwin":
            rename = library.renamex_np
            return lambda a, b: int(rename(a, b, ctypes.c_uint(swap)))
        rename = library.renameat2
        return lambda a, b: int(rename(at_cwd, a, at_cwd, b, ctypes.c_uint(swap)))
    except AttributeError:
        return None


# --- the manifest of an output folder --------------------------------------------------------

MANIFEST = "manifest.json"
#: What systems and Python leave in any folder, and make again.
_DISPOSABLE = ("__pycache__", ".DS_Store")
#: Where a search under way keeps its study, in the folder that its result will take.
SEARCH = ".search"
#: The file in it that its process locks, and what that holds.
SEARCH_LOCK, SEARCH_MARK = "lock", "A search of mpsearch that is under way\n"


def write_manifest(folder: Path, made_by: str) -> None:
    """List the files of a folder in it, so that a later run knows them for its own."""
    content = {"made_by": made_by, "files": [*_files(folder), MANIFEST]}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")


def listed(folder: Path) -> set[str]:
    """The files that a folder's manifest lists; none without a manifest."""
    try:
        found = read_json(folder / MANIFEST, "")
        return {str(name) for name in found["files"]}
    except (InputError, TypeError, KeyError):
        return set()


def foreign(folder: Path) -> str | None:
    """Why a folder is not ours to replace; None where its manifest lists all that it holds."""
    if not folder.is_dir():
        return "it is a file, and a folder is to be written"
    found = _files(folder)
    if not found and {p.name for p in folder.iterdir()} <= {SEARCH}:
        return None
    mine = listed(folder)
    if not mine:
        return "it is not empty and holds no mpsearch result"
    strange = [name for name in found if name not in mine]
    return f"it holds {strange[0]!r}, which mpsearch did not write" if strange else None


def is_search(folder: Path) -> bool:
    """Whether mpsearch made a folder for a search under way; a link to one is none."""
    mark = folder / SEARCH_LOCK
    try:
        if folder.is_symlink() or any(_odd(path) for path in folder.rglob("*")):
            return False
        return mark.read_text() == SEARCH_MARK
    except (OSError, ValueError):
        return False


def _odd(path: Path) -> bool:
    """Whether a path is neither a file nor a folder, but a link or a pipe."""
    mode = path.lstat().st_mode
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _files(folder: Path) -> list[str]:
    """Every file and link below a folder, as relative paths with slashes; no search under way."""
    skipped = SEARCH if is_search(folder / SEARCH) else None
    return sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if (p.is_symlink() or not p.is_dir())
        and not any(part in _DISPOSABLE for part in p.relative_to(folder).parts)
        and p.relative_to(folder).parts[0] != skipped
    )
