"""``precision.json``: the stored outcome of a search, versioned and checked."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import check_schema, read_json

VERSION = 1
#: The dtypes of inputs, as torch names them.
DTYPES = (
    *("float16", "bfloat16", "float32", "float64", "bool", "uint8"),
    *("int8", "int16", "int32", "int64"),
)

_NUMBER = {"type": ["number", "null"]}
_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "mpsearch precision config",
    "type": "object",
    "required": [
        "version",
        "source",
        "fingerprint",
        "versions",
        "target",
        "io_dtype",
        "metric",
        "budget",
        "errors",
        "numerics",
        "seed",
        "inputs",
        "fp32_ops",
    ],
    "additionalProperties": False,
    "properties": {
        "version": {"const": VERSION},
        "source": {"type": "string"},
        "fingerprint": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "versions": {"type": "object", "additionalProperties": {"type": "string"}},
        "target": {"enum": ["iOS15", "iOS16", "iOS17", "iOS18"]},
        "io_dtype": {"enum": ["fp16", "fp32"]},
        "metric": {"type": "string"},
        "budget": {"type": "number"},
        "custom_metric": {"type": "boolean"},
        "errors": {"type": "object", "additionalProperties": _NUMBER},
        "numerics": {"type": "string"},
        "seed": {"type": "integer", "minimum": 0, "exclusiveMaximum": 2**32},
        "states": {"type": "array", "items": {"type": "string"}},
        "weights": {
            "type": ["object", "null"],
            "required": ["storage", "names"],
            "additionalProperties": False,
            "properties": {
                "storage": {"enum": ["fp16", "int8"]},
                "names": {"type": "array", "items": {"type": "string"}},
            },
        },
        "inputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "dtype", "shape"],
                "additionalProperties": False,
                "properties": {
                    "name": {"type": "string"},
                    "dtype": {"enum": list(DTYPES)},
                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                },
            },
        },
        "fp32_ops": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "type", "layer", "sensitivity"],
                "additionalProperties": False,
                "properties": {
                    "name": {"type": "string"},
                    "type": {"type": "string"},
                    "layer": {"type": "string"},
                    "line": {"type": "string"},
                    "verdict": {"type": "string"},
                    "sensitivity": _NUMBER,
                },
            },
        },
    },
}


@dataclass(frozen=True, slots=True)
class KeptOp:
    """An op kept in FP32.

    ``sensitivity`` is the error when this op alone is FP16, None where that is infinite: measured,
    or, in sets of more than 64 ops, predicted to first order (:mod:`mpsearch.search.rounding`);
    None as well where there was no time to find out, which the result says.
    ``line`` is where it stands in Python, ``verdict`` why FP16 breaks it by itself
    (:data:`mpsearch.explain.diagnosis.VERDICTS`), ``adds up`` where it does not; both empty where
    unknown.
    """

    name: str
    type: str
    layer: str
    sensitivity: float | None = None
    line: str = ""
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class Config:
    """What :func:`mpsearch.apply` and :func:`mpsearch.check` need to know.

    ``inputs`` are the model's inputs as the first sample gave them: name, torch dtype, shape.
    ``metric`` is a name; with ``custom_metric`` that of a function, which the caller gives anew:
    a config is data and names nothing that is run. ``states`` are the buffers that are states.
    ``weights`` says how weights are stored, and which (:mod:`mpsearch.package.weights`); None as
    typed.
    """

    source: str
    fingerprint: str
    versions: dict[str, str]
    target: str
    io_dtype: str
    metric: str
    budget: float
    errors: dict[str, float | None]
    numerics: str
    seed: int
    inputs: list[dict[str, Any]] = field(default_factory=list)
    fp32_ops: list[KeptOp] = field(default_factory=list)
    weights: dict[str, Any] | None = None
    states: list[str] = field(default_factory=list)
    custom_metric: bool = False
    version: int = VERSION

    def write(self, path: Path) -> None:
        """Write the config as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2, allow_nan=False) + "\n")


def read(path: str | Path) -> Config:
    """Read a config, or the one in a directory that ``optimize`` wrote.

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
    if found != VERSION:
        raise InputError(
            f"{file} has version {found!r}, expected {VERSION}; run optimize again with this "
            "version of mpsearch"
        )
    check_schema(raw, _SCHEMA, f"{file} is no precision config")
    raw["fp32_ops"] = [KeptOp(**op) for op in raw["fp32_ops"]]
    return Config(**raw)
