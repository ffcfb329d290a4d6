"""Writes a package, and measures it as read back from disk."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import VerificationError
from ..package import emission, verification, weights
from ..program.precision import Precision
from ..source.prepare import Prepared


@dataclass(frozen=True, slots=True)
class Written:
    """A package on disk, as it was read back.

    Attributes
    ----------
    calibration, heldout
        Its loss on the calibration data, and on the held-out data (minus infinity without any).
    stored
        What came of storing weights otherwise; None where that was not asked for.
    stored_names
        Which weights are stored so.
    """

    package: verification.ReadBack
    calibration: float
    heldout: float
    stored: weights.Stored | None = None
    stored_names: tuple[str, ...] = ()

    @property
    def worst(self) -> float:
        """The larger of its losses."""
        return max(self.calibration, self.heldout)


def write(
    prepared: Prepared,
    precision: Precision,
    path: Path,
    stored: tuple[str, Collection[str]] | None = None,
) -> Written:
    """Write a package with a precision, and read it back.

    ``stored`` says how weights are stored, and which.

    Raises
    ------
    VerificationError
        If the package computes an op in another precision than was asked for.
    """
    names = [prepared.ops[i].name for i in precision]
    mlmodel = emission.convert(prepared.precast, emission.selector(names), stored)
    mlmodel.save(str(path))
    package = verification.read_back(path)
    wrong = verification.precision_mismatch(package, prepared.lowered, names)
    if wrong is not None:
        raise VerificationError(f"the written package is not what was searched: {wrong}")
    return Written(package, *_losses(prepared, package))


def _losses(prepared: Prepared, package: verification.ReadBack) -> tuple[float, float]:
    arguments = (prepared.metric, prepared.profiles)
    return (
        verification.losses(package, prepared.calibration, prepared.references, *arguments),
        verification.losses(package, prepared.heldout, prepared.heldout_references, *arguments),
    )


def store(
    prepared: Prepared,
    precision: Precision,
    path: Path,
    plain: Written,
    dtype: str,
    limit: float,
) -> Written:
    """Store as many weights otherwise as the budget allows, and read the package back.

    Raises
    ------
    VerificationError
        If the package is not what was promised.
    """
    before = emission.package_bytes(path)
    function = plain.package.function
    forms = weights.changed(function, dtype)

    def holds(chosen: set[str]) -> bool:
        function_ = weights.with_weights(function, forms, chosen)
        return max(_losses(prepared, replace(plain.package, function=function_))) <= limit

    chosen = weights.largest_set(list(forms), holds)
    written = plain
    if chosen:
        written = write(prepared, precision, path, (dtype, chosen))
        if written.worst > limit:
            raise VerificationError(
                f"the package with weights stored as {dtype} has another error than was measured"
            )
    stored = weights.Stored(dtype, len(chosen), len(forms), before, emission.package_bytes(path))
    return replace(written, stored=stored, stored_names=tuple(sorted(chosen)))
