"""What all answers have in common: complete and frozen, to JSON and back."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import msgspec

from ..errors import InputError

#: Of the JSON that answers are written as; it changes when an older reader would misread it.
VERSION = 2


class Answer(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """An answer: plain data, and a version that says how to read it.

    Infinite errors are null in JSON, which has no infinity; those named in ``ERRORS`` (``error``,
    or ``points.error`` for those in a list) are read back as infinite, unless ``not_measured``
    names them.
    """

    ERRORS: ClassVar[tuple[str, ...]] = ()

    version: int = VERSION

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return found

    @classmethod
    def from_dict(cls, content: Any, what: str = "the content") -> Self:
        """From what :meth:`as_dict` gave; ``what`` says in an error where it came from.

        Raises
        ------
        InputError
            If it is of another version, or does not fit.
        """
        found = content.get("version") if isinstance(content, dict) else None
        if found != VERSION:
            raise InputError(
                f"{what} has version {found!r}, expected {VERSION}; run mpsearch again with this "
                "version"
            )
        wide = dict(content)
        for place in cls.ERRORS:
            name, _, within = place.partition(".")
            value = wide.get(name)
            if within and isinstance(value, list):
                wide[name] = [_widened(row, within) for row in value]
            elif name not in (wide.get("not_measured") or ()):
                wide = _widened(wide, name)
        try:
            return msgspec.convert(wide, cls)
        except msgspec.ValidationError as error:
            raise InputError(f"{what} is no {cls.__name__}: {error}") from error

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """The JSON Schema of what :meth:`as_dict` gives."""
        return msgspec.json.schema(cls)


def _widened(row: Any, name: str) -> Any:
    """A row of JSON with infinity where it has null under a name."""
    missing = isinstance(row, dict) and name in row and row[name] is None
    return {**row, name: math.inf} if missing else row
