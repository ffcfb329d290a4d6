"""Archives in torch's format, made of what was checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import torch

Write = Callable[[str, bytes], None]


@contextmanager
def archive_writer(out: str | IO[bytes], version: int = 0) -> Iterator[Write]:
    """A function that adds an entry of a name, with its bytes, to a new archive.

    ``version`` is that of the file format, by which torch tells how old ops are meant: it is
    written to ``.data/version`` from 6 on, and to ``version`` below.
    """
    writer: Any = torch._C.PyTorchFileWriter(out)  # type: ignore[arg-type]
    try:
        writer.set_min_version(version)
        yield lambda name, body: writer.write_record(name, body, len(body))
    finally:
        writer.write_end_of_file()  # a writer that is let go unfinished ends the process
