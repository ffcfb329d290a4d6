"""Writes a package, and measures it as read back from disk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..device.coreml import CoreML
from ..errors import InputError, VerificationError
from ..hints import option
from ..package import emission, verification, weights
from ..program.graph import walk
from ..program.packages import open_package
from ..program.precision import Precision
from ..source.prepare import Prepared
from .converted import predicted

#: With more calibration samples than these, a package is run on those with the largest errors.
_MOST_RUN = 32


@dataclass(frozen=True, slots=True)
class Written:
    """A package on disk, as it was read back.

    Attributes
    ----------
    losses
        Its loss on each calibration sample that it was run on, or on all together.
    stored
        What came of storing weights otherwise; None where that was not asked for.
    stored_names
        Which weights are stored so.
    """

    package: verification.ReadBack
    losses: tuple[float, ...]
    stored: weights.Stored | None = None
    stored_names: tuple[str, ...] = ()

    @property
    def loss(self) -> float:
        """The largest of its losses."""
        return max(self.losses)


def write(
    prepared: Prepared,
    precision: Precision,
    path: Path,
    searched: Sequence[int],
    stored: tuple[str, Collection[str]] | None = None,
    device: CoreML | None = None,
) -> Written:
    """Write a package with a precision, and read it back; on a device where one is given.

    ``searched`` are calibration samples by index, those likeliest to break the budget first.
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
    if device is not None:
        package = replace(package, predict=_on(device, path, prepared))
    return Written(package, _losses(prepared, package, searched))


#: The pass that casts integers to 16 bits for some ops from iOS17 on, by the type that it chose
#: for the op before, and whatever they hold (coremltools 9.0, ``add_int16_cast``).
_INT16 = "common::add_int16_cast"
_INT16_OPS = frozenset({"gather", "gather_along_axis", "gather_nd", "squeeze", "topk"})


def check_integers(
    prepared: Prepared, precision: Precision, path: Path, searched: Sequence[int], limit: float
) -> None:
    """Fail where a package breaks the budget since coremltools made integers too small.

    Raises
    ------
    InputError
        If the same package without that pass meets the budget.
    """
    if not any(node.op_type in _INT16_OPS for node in walk(prepared.lowered.nodes)):
        return
    chosen = emission.selector([prepared.ops[i].name for i in precision])
    emission.convert(prepared.precast, chosen, without=(_INT16,)).save(str(path))
    if max(_losses(prepared, verification.read_back(path), searched)) <= limit:
        raise InputError(
            f"the package differs from what was searched: coremltools' pass {_INT16} casts "
            "integers to 16 bits that need more, so that -4 may become 65532; choose "
            f"{option('target', 'iOS16')}, which has no such casts"
        )


def _on(
    device: CoreML, path: Path, prepared: Prepared
) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    loaded = device.load(open_package(path, limits=None))
    return lambda sample: predicted(loaded, sample, prepared.lowered.outputs)


def _losses(
    prepared: Prepared, package: verification.ReadBack, searched: Sequence[int]
) -> tuple[float, ...]:
    data, references, metric = prepared.calibration, prepared.references, prepared.metric
    if metric.combine != "max":
        return (verification.loss(package, data, references, metric, prepared.profiles),)
    known = range(len(data.samples))
    run = list(dict.fromkeys([*(s for s in searched if s in known), *known]))[:_MOST_RUN]
    samples, wanted = [data.samples[s] for s in run], [references[s] for s in run]
    return tuple(verification.losses(package, samples, wanted, metric, prepared.profiles))


def store(
    prepared: Prepared,
    precision: Precision,
    path: Path,
    plain: Written,
    searched: Sequence[int],
    dtype: str,
    limit: float,
    device: CoreML | None = None,
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
        package = replace(plain.package, function=function_, predict=None)
        return max(_losses(prepared, package, searched)) <= limit

    chosen = weights.largest_set(list(forms), holds)
    written = plain
    if chosen:
        written = write(prepared, precision, path, searched, (dtype, chosen), device)
        if written.loss > limit:
            raise VerificationError(
                f"the package with weights stored as {dtype} has another error than was measured"
            )
    stored = weights.Stored(dtype, len(chosen), len(forms), before, emission.package_bytes(path))
    return replace(written, stored=stored, stored_names=tuple(sorted(chosen)))
