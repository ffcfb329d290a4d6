"""``precision.json``: the stored outcome of a search, versioned and checked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from ..errors import InputError
from ..files import read_json
from ..hints import argument
from ..options import METRICS, Constraints, Conversion, Execution, Limits
from ..scaling.exponents import Scale
from ..scaling.patterns import Rewrite
from .migration import migrated

VERSION = 3

Whole = Annotated[int, msgspec.Meta(ge=0)]


class KeptOp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An op kept in FP32.

    Attributes
    ----------
    name, type, layer, line
        The op, the PyTorch module it came from, and where it stands in Python.
    sensitivity
        The error when this op alone is FP16, None where that is infinite: measured where it may
        break the budget, else predicted to first order (:mod:`mpsearch.search.rounding`). None as
        well where there was no time to find out, which the result says.
    verdict
        Why it is FP32: how FP16 breaks it by itself (:data:`mpsearch.explain.diagnosis.VERDICTS`),
        ``overflow``, ``may overflow`` or ``may vanish`` by its range, ``conflict`` where it breaks
        a sample together with a few others, ``rounding`` for what it adds to all, ``pinned``,
        ``layer`` where another op of its layer is the reason.
    reason
        The same as a phrase, with the sample and the ops it is shared with.
    """

    name: str
    type: str
    layer: str
    sensitivity: float | None = None
    line: str = ""
    verdict: str = ""
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.type}, {self.layer or 'no layer'})"


class InputSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input of the model as the first sample gave it: name, torch dtype, shape."""

    name: str
    dtype: Literal[
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "bool",
        "uint8",
        "int8",
        "int16",
        "int32",
        "int64",
    ]
    shape: tuple[Whole, ...]


class StoredWeights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How weights are stored, and which, by name (:mod:`mpsearch.package.weights`)."""

    dtype: Literal["fp16", "int8"]
    names: tuple[str, ...]


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What :func:`mpsearch.apply` and :func:`mpsearch.check` need to know, and how it was found.

    Attributes
    ----------
    source
        What the model is, for people.
    fingerprint
        SHA-256 of the program and its weights.
    versions
        Of the packages that made it.
    metric, custom_metric
        A name; with ``custom_metric`` that of a function, which the caller gives anew: a config is
        data and names nothing that is run.
    budget, numerics, heldout, strategy
        As given.
    conversion, constraints, limits, execution
        As given, ``io_dtype`` as it was found in the model.
    errors
        ``error``, ``error_fp16``, ``error_fp32``, ``heldout_error``; None where infinite.
    inputs
        The model's inputs as the first sample gave them.
    fp32_ops
        The ops kept in FP32.
    graph
        Every op that could be chosen, in execution order: its type, shapes and layer, by which
        those of ``fp32_ops`` are found under other names (:mod:`mpsearch.package.matching`).
    places
        The places of ``fp32_ops`` among them.
    weights
        How weights are stored; None as typed.
    rewrites
        What is rewritten.
    scales
        What ops take times a power of two, after that.
    """

    source: str
    fingerprint: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    versions: dict[str, str]
    metric: str
    budget: float
    numerics: str
    conversion: Conversion
    constraints: Constraints
    limits: Limits
    execution: Execution
    errors: dict[str, float | None]
    inputs: tuple[InputSpec, ...]
    fp32_ops: tuple[KeptOp, ...]
    heldout: float
    strategy: str
    rewrites: tuple[Rewrite, ...]
    scales: tuple[Scale, ...]
    weights: StoredWeights | None = None
    custom_metric: bool = False
    graph: tuple[str, ...] = ()
    places: tuple[Whole, ...] = ()
    version: Literal[3] = 3

    def __post_init__(self) -> None:
        if not math.isfinite(self.budget):
            raise ValueError(f"budget is {self.budget}, expected a finite number")
        if self.graph and len(self.places) != len(self.fp32_ops):
            raise ValueError("places and fp32_ops differ in length")
        if any(place >= len(self.graph) for place in self.places):
            raise ValueError("a place is beyond the graph")
        if any(text.count(" ") < 2 for text in self.graph):
            raise ValueError("an op of the graph is no type, shapes and layer")

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return found

    def write(self, path: Path) -> None:
        """Write the config as JSON."""
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """The JSON Schema of ``precision.json``."""
        return msgspec.json.schema(cls)


def metric(config: Config, given: Any = None) -> Any:
    """The metric of a config, or the one given instead.

    Raises
    ------
    InputError
        If the config's is a function, and none is given.
    """
    if given is None and (config.custom_metric or config.metric not in METRICS):
        raise InputError(
            f"the config was made with the metric {config.metric!r}, a function, which a config "
            f"does not bring along; give it: "
            + argument("metric package.module:callable", "metric=")
        )
    return config.metric if given is None else given


def read(path: str | Path) -> Config:
    """Read a config, or the one in a directory that ``optimize`` wrote; also of older versions.

    Raises
    ------
    InputError
        If the file is missing, is no JSON, or does not fit the schema.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "precision.json"
    raw = read_json(file, "a precision.json or its directory")
    found = raw.get("version") if isinstance(raw, dict) else None
    if not isinstance(found, int) or not 1 <= found <= VERSION:
        raise InputError(
            f"{file} has version {found!r}, expected 1 to {VERSION}; run optimize again with this "
            "version of mpsearch"
        )
    try:
        raw = migrated(raw)
    except (KeyError, TypeError) as error:
        raise InputError(f"{file} is no precision config of version {found}: {error}") from error
    try:
        return msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        raise InputError(f"{file} is no precision config: {error}") from error
