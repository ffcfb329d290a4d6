"""Pins: which ops the user has decided already."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence

from ..errors import InputError
from ..options import pin
from ..program.candidates import CandidateOp

#: What is said where layers are asked for, and the model has lost them.
NO_LAYERS = (
    "the model's layers are not known (frozen TorchScript and packages have none); name ops or "
    "types, or give the PyTorch model or a .pt2"
)


def resolve(patterns: Iterable[str], ops: Sequence[CandidateOp], option: str) -> set[int]:
    """The candidate ops that ``type:``, ``layer:`` and ``op:`` patterns name; * is a wildcard.

    Raises
    ------
    InputError
        If a pattern has another form or matches no candidate op.
    """
    found: set[int] = set()
    for pattern in patterns:
        kind, glob = pin(pattern, option)
        field = "name" if kind == "op" else kind
        hits = {op.index for op in ops if fnmatch.fnmatchcase(getattr(op, field), glob)}
        if kind == "layer":  # a layer without a wildcard means what is inside it as well
            hits |= {op.index for op in ops if op.layer.startswith(glob + ".")}
        if kind == "layer" and not any(op.layer for op in ops):
            raise InputError(f"{option} {pattern!r}: {NO_LAYERS}")
        if not hits:
            known = sorted({getattr(op, field) for op in ops} - {""})
            close = difflib.get_close_matches(glob.rstrip("*"), known, 3, 0.6)
            meant = ", ".join(f"{kind}:{name}" for name in close)
            hint = f"; did you mean {meant}?" if close else ""
            hint = hint or (f"; there are {', '.join(known[:8])}" if known else "")
            raise InputError(f"{option} {pattern!r} matches no candidate op{hint}")
        found |= hits
    return found
