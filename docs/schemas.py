"""Writes the JSON Schemas of what mpsearch writes and reads, from its types.

python docs/schemas.py
"""

from __future__ import annotations

import json
from pathlib import Path

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


def schemas() -> dict[str, str]:
    """By file name, the schemas as JSON."""
    return {
        f"{name}.json": json.dumps(msgspec.json.schema(kind), indent=1, sort_keys=True) + "\n"
        for name, kind in KINDS.items()
    }


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for name, text in schemas().items():
        (OUT / name).write_text(text)
        print(f"wrote {OUT / name}")
