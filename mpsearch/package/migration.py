"""Brings a ``precision.json`` of an older version to today's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Raw = dict[str, Any]

_AS_THEY_ARE = (
    *("source", "fingerprint", "versions", "metric", "budget", "numerics", "errors", "inputs"),
    "fp32_ops",
)


def _from_1(raw: Raw) -> Raw:
    """0.1: options in one flat list, no record of how long was searched."""
    weights = raw.get("weights")
    return {
        "version": 2,
        **{name: raw[name] for name in _AS_THEY_ARE},
        "custom_metric": raw.get("custom_metric", False),
        "weights": weights and {"dtype": weights["storage"], "names": weights["names"]},
        "conversion": {
            "target": raw["target"],
            "io_dtype": raw["io_dtype"],
            "states": raw.get("states", []),
            "weight_dtype": weights and weights["storage"],
        },
        "constraints": {},
        "limits": {},
        "execution": {"seed": raw["seed"]},
        "heldout": 0.3,
        "strategy": "greedy-optuna",
        "rewrites": [],
        "scales": [],
    }


def _from_2(raw: Raw) -> Raw:
    """Development of 0.2: nothing by which ops are found under other names."""
    return {"rewrites": [], "scales": [], **raw, "version": 3, "graph": [], "places": []}


#: What brings a version to the next.
STEPS: dict[int, Callable[[Raw], Raw]] = {1: _from_1, 2: _from_2}


def migrated(raw: Raw) -> Raw:
    """The same config in today's version; what is of no known version comes back as it is.

    Raises
    ------
    KeyError, TypeError
        If it lacks what its version has.
    """
    while (step := STEPS.get(raw.get("version", 0))) is not None:
        raw = step(raw)
    return raw
