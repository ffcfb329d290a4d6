"""Names that coremltools gives to inputs: words that it reserves, and characters, are changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from .._ct import quiet

with quiet():
    from coremltools.converters.mil.mil.passes.defs.preprocess import NameSanitizer

Value = TypeVar("Value")


def package_name(name: str) -> str:
    """What an input or output is called in a package (``common::sanitize_input_output_names``).

    Where that is another's name already, coremltools appends a number besides.
    """
    return str(NameSanitizer(prefix="var_").sanitize_name(name))


def known_name(name: str, names: Iterable[str]) -> str:
    """The one of ``names`` that is the same in a package; ``name`` itself where none or several."""
    names = list(names)
    if name in names:
        return name
    same = [one for one in names if package_name(one) == package_name(name)]
    return same[0] if len(same) == 1 else name


def by_known_names(values: Mapping[str, Value], names: Iterable[str]) -> dict[str, Value]:
    """The values under the names of a model's inputs, whether given as in PyTorch or in a package.

    Keys that are neither, or that would take the place of another, stay as they are.
    """
    names = list(names)
    found: dict[str, Value] = {}
    for key, value in values.items():
        known = known_name(str(key), names)
        found[str(key) if known != key and known in values else known] = value
    return found
