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
from pathlib import Path
from typing import Any

import torch

from .._ct import quiet
from ..errors import InputError
from ..files import Room, first_line
from .archives import archive_writer

#: Names of operators that do more than compute.
_TOUCHING = re.compile(rb"\b(save|from_file|print)\b")
#: What an archive holds that ``torch.jit.save`` wrote.
_ENTRY = re.compile(
    r"code/[\w./<>]+\.py(\.debug_pkl)?|(data|constants|traced_inputs)(\.pkl|/\d+)|byteorder"
)
#: What torch writes anew, and what nothing is read from.
_LEFT_OUT = re.compile(r"version|\.data/.*|extra/.*")


def load_scripted(file: Path, trust: bool) -> Any:
    """The ``ScriptModule`` in a TorchScript file.

    Parameters
    ----------
    trust
        Load it as it is, whatever it does.

    Raises
    ------
    InputError
        If it is no TorchScript, or, without ``trust``, could do more than compute.
    """
    room = Room()
    try:
        path = file if trust else room.path / "checked.pt"
        if not trust:
            _copy_checked(file, path)
        with quiet():
            return torch.jit.load(str(path), map_location="cpu")
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{file} is no usable TorchScript file: {first_line(error)}") from error
    finally:
        room.close()


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
        version = int(archive.read(entries["version"])) if "version" in entries else 0
        with archive_writer(str(out), version) as write:
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
