"""Writes the JSON Schemas of what mpsearch writes and reads, from its types.

python docs/schemas.py
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import msgspec

import mpsearch
from mpsearch.numerics.observed import Observation
from mpsearch.results.verified import Verified

OUT = Path(__file__).parent / "schemas"
KINDS = {
    "precision": mpsearch.Config,
    "result": mpsearch.Result,
    "analysis": mpsearch.Analysis,
    "front": mpsearch.Front,
    "check": mpsearch.CheckResult,
    "verified": Verified,
    "numerics": Observation,
}


def _dedented(schema: Any) -> Any:
    """With descriptions as Python 3.13 has docstrings: without the indentation of the source."""
    if isinstance(schema, list):
        return [_dedented(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: inspect.cleandoc(value)
        if key == "description" and isinstance(value, str)
        else _dedented(value)
        for key, value in schema.items()
    }


def schemas() -> dict[str, str]:
    """By file name, the schemas as JSON."""
    return {
        f"{name}.json": json.dumps(_dedented(msgspec.json.schema(kind)), indent=1, sort_keys=True)
        + "\n"
        for name, kind in KINDS.items()
    }


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for name, text in schemas().items():
        (OUT / name).write_text(text)
        print(f"wrote {OUT / name}")
