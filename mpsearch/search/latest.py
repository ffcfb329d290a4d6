"""The newest answer, in a small file until the database has it: a commit takes milliseconds, and a
process may be killed within them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import xxhash

from .answer import Answer, attributes, read_answer

#: More is not read: somebody else's file.
_MOST_BYTES = 64 << 20


class Latest:
    """One answer, with what it is found by.

    Parameters
    ----------
    database
        The file of the database, beside which it lies; None: there is none, and nothing is kept.
    study
        The name of the study that the answer belongs to.
    """

    def __init__(self, database: Path | None, study: str) -> None:
        self._file: Path | None = None
        if database is not None:
            name = f"{database.name}-{xxhash.xxh3_64_hexdigest(study.encode())}.latest"
            self._file = database.with_name(name)

    def put(self, asked: str, answer: Answer) -> None:
        """Keep this one; where it cannot be written, none is kept."""
        if self._file is not None:
            text = json.dumps({"call": asked, **attributes(answer)})
            with contextlib.suppress(OSError):
                self._file.write_text(text, encoding="utf-8")

    def take(self) -> dict[str, Answer]:
        """What a process that was killed left, by what it is found by; nothing else is believed."""
        try:
            if self._file is None or self._file.stat().st_size > _MOST_BYTES:
                return {}
            found = json.loads(self._file.read_text(encoding="utf-8"))
            return {str(found["call"]): read_answer(found)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}  # cut off as it was written

    def clear(self) -> None:
        """The database has it."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink()
