"""Profiles as users name them."""

from __future__ import annotations

from collections.abc import Sequence

from .. import options
from ..errors import InputError
from .observed import read
from .profiles import PROFILES, Profile

#: A profile by name, or as an object; several as a list, or by names with commas between them.
Numerics = str | Profile | Sequence[str | Profile]


def chosen(numerics: Numerics) -> list[Profile]:
    """The profiles that are named or given.

    Raises
    ------
    InputError
        If something is neither a name of :data:`PROFILES`, nor the file of a profile, nor a
        :class:`Profile`.
    """
    given = [numerics] if isinstance(numerics, (str, Profile)) else list(numerics)
    out: list[Profile] = []
    for item in given:
        if isinstance(item, Profile):
            out.append(item)
            continue
        for name in options.profile_names(str(item)):
            out.append(PROFILES[name] if name in PROFILES else read(name))
    if not out:
        raise InputError(f"numerics is {numerics!r}; choose from {', '.join(PROFILES)}")
    return out
