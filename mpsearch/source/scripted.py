"""Opens TorchScript files without running what touches files or the terminal.

TorchScript is code, and ``torch.jit.load`` runs the ``__setstate__`` of its classes. Its operators
compute on tensors, but for a few: those that read and write files, and ``print``. Where one of
their names stands in the code, the file is refused; what is called through interfaces, forks and
methods cannot be told from a look at graphs. What was looked at is written into an archive of
ours, which torch is handed: its reader finds other entries than zipfile in an archive with two
directories, and does not tell ``CODE/`` from ``code/``.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..files import first_line
from ..isolated import LoadLimits, contained, tried
from ..memory import check_held
from ..temporary import TemporaryFolder
from .archives import archive_writer

#: Names of operators that do more than compute. An attribute of such a name is refused as well, for
#: TorchScript can give operators other names: what a name stands for does not show in the text.
_TOUCHING = re.compile(rb"\b(save|from_file|_?print)\b")
#: What an archive holds that ``torch.jit.save`` wrote.
_ENTRY = re.compile(
    r"code/[\w./<>]+\.py(\.debug_pkl)?|(data|constants|traced_inputs)(\.pkl|/\d+)|byteorder"
)
#: What torch writes anew, and what it reads nothing of the module from: files that the user added,
#: and the code for the interpreter of phones.
_LEFT_OUT = re.compile(
    r"version|\.data/.*|extra/.*|bytecode(\.pkl|/\d+)|mobile_debug_handles\.pkl|metadata\.pkl"
)
#: Where the version of the format stands.
_VERSIONS = (".data/version", "version")


def load_scripted(file: Path, trust: bool, limits: LoadLimits = LoadLimits()) -> Any:
    """The ``ScriptModule`` in a TorchScript file.

    Parameters
    ----------
    trust
        Load it as it is, whatever it does.

    Raises
    ------
    InputError
        If it is no TorchScript, or, without ``trust``, could do more than compute, or takes more
        than ``limits`` to open.
    """
    folder = TemporaryFolder()
    try:
        path = file if trust else folder.path / "checked.pt"
        if not trust:
            tried(_check, [str(file), str(path)], file, limits, _code_bytes(file))
        with contained():
            return _loaded(path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{file} is no usable TorchScript file: {first_line(error)}") from error
    finally:
        folder.close()


def _loaded(path: Path) -> Any:
    return torch.jit.load(str(path), map_location="cpu")


def _check(file: str, out: str) -> None:
    """Write what was checked, and see whether torch can read that."""
    try:
        _copy_checked(Path(file), Path(out))
        check_held(_loaded(Path(out)).state_dict(), file)
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{file} is no usable TorchScript file: {first_line(error)}") from error


def _code_bytes(file: Path) -> int:
    with zipfile.ZipFile(file) as archive:
        return sum(i.file_size for i in archive.infolist() if i.filename.endswith(".py"))


def _copy_checked(file: Path, out: Path) -> None:
    trusted = "pass --allow-pickle if you trust where it comes from"
    with zipfile.ZipFile(file) as archive:
        entries: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            name = info.filename.partition("/")[2]
            if name in entries:
                raise InputError(f"{file} is no usable TorchScript file: it holds {name!r} twice")
            if not (_ENTRY.fullmatch(name) or _LEFT_OUT.fullmatch(name)):
                raise InputError(f"{file} holds {name!r}, which no TorchScript does; {trusted}")
            entries[name] = info
        with archive_writer(str(out), _format(file, archive, entries)) as write:
            for name, info in entries.items():
                if _LEFT_OUT.fullmatch(name):
                    continue
                body = archive.read(info)
                found = _TOUCHING.search(body) if name.endswith(".py") else None
                if found is not None:
                    raise InputError(
                        f"{file} holds {found.group().decode()!r} in its code, by which "
                        f"TorchScript reaches files or the terminal; {trusted}"
                    )
                write(name, body)


def _format(file: Path, archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo]) -> int:
    """The version of the file format, by which torch tells how ops of older files are meant.

    It stands in ``.data/version`` from 6 on, and in ``version`` below (torch,
    ``caffe2/serialize/inline_container.cc``).
    """
    found = {name: archive.read(entries[name]) for name in _VERSIONS if name in entries}
    newest = torch._C._get_max_operator_version()
    values = set(found.values())
    if len(values) != 1 or not (text := values.pop().strip()).isdigit():
        raise InputError(
            f"{file} is no usable TorchScript file: it says the version of its format "
            f"{len(found)} times, expected one number in {' or '.join(_VERSIONS)}"
        )
    if not 1 <= int(text[:9]) <= newest:
        raise InputError(
            f"{file} has version {text[:9].decode()} of TorchScript's format, and torch "
            f"{torch.__version__} reads 1 to {newest}; save it with this version of torch"
        )
    return int(text)
