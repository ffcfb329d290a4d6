"""Writes a package, and measures it as read back from disk."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import VerificationError
from ..package import emission, verification, weights
from ..source.prepare import Prepared


def write(
    prepared: Prepared,
    names: Sequence[str],
    path: Path,
    stored: tuple[str, Collection[str]] | None = None,
) -> tuple[verification.ReadBack, float, float]:
    """Write a package and measure it as read back: (package, loss, loss on held-out data)."""
    mlmodel = emission.convert(prepared.precast, emission.selector(names), stored)
    mlmodel.save(str(path))
    package = verification.read_back(path)
    wrong = verification.precision_mismatch(package, prepared.lowered, names)
    if wrong is not None:
        raise VerificationError(f"the written package is not what was searched: {wrong}")
    arguments = (prepared.metric, prepared.profiles)
    measured = verification.losses(package, prepared.calibration, prepared.references, *arguments)
    held = verification.losses(package, prepared.heldout, prepared.heldout_references, *arguments)
    return package, measured, held


def store(
    prepared: Prepared,
    names: Sequence[str],
    path: Path,
    plain: tuple[verification.ReadBack, float, float],
    storage: str,
    limit: float,
) -> tuple[verification.ReadBack, float, float, weights.Stored, list[str]]:
    """Store as many weights otherwise as the budget allows, and read the package back."""
    before = emission.package_bytes(path)
    function = plain[0].function
    forms = weights.changed(function, storage)

    def holds(chosen: set[str]) -> bool:
        tried = replace(plain[0], function=weights.with_weights(function, forms, chosen))
        sets = (
            (prepared.calibration, prepared.references),
            (prepared.heldout, prepared.heldout_references),
        )
        return all(
            verification.losses(tried, data, wanted, prepared.metric, prepared.profiles) <= limit
            for data, wanted in sets
        )

    chosen = weights.largest_set(list(forms), holds)
    written = plain
    if chosen:
        written = write(prepared, names, path, (storage, chosen))
        if max(written[1:]) > limit:
            raise VerificationError(
                f"the package with weights stored as {storage} has another error than was measured"
            )
    stored = weights.Stored(storage, len(chosen), len(forms), before, emission.package_bytes(path))
    return (*written, stored, sorted(chosen))
