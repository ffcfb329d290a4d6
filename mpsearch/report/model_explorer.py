"""The graph and its node data as Google's Model Explorer reads them.

Model Explorer (ai-edge-model-explorer 0.1.34) has no adapter for Core ML, and a graph file cannot
hold node data. So three files are written: the graph of the candidate ops, and beside it the
verdicts and the sensitivities. ``model-explorer FILE --node_data_paths=A,B`` shows them together.
Keys of node data are node ids, here the names of MIL ops.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..explain.diagnosis import VERDICTS
from ..files import check_writable as _check
from ..files import read_json, written
from ..results.analysis import Analysis, OpAnalysis
from .text import value

#: From harmless to lost.
_RAMP = ("#c8e6c9", "#fff59d", "#ffcc80", "#ef9a9a", "#e57373")
_COLORS = dict(
    zip(
        VERDICTS,
        ("#e57373", "#90caf9", "#ce93d8", "#ffcc80", "#fff59d", "#ef9a9a", "#c8e6c9"),
        strict=True,
    )
)


def _paths(file: str | Path) -> tuple[Path, Path, Path]:
    graph = Path(file)
    return graph, graph.with_suffix(".verdict.json"), graph.with_suffix(".sensitivity.json")


def _foreign(path: Path) -> str | None:
    """Why a file is not one of these; None where it is."""
    try:
        content = read_json(path, "")
    except InputError:
        return "it is no graph that mpsearch wrote"
    ours = isinstance(content, dict) and (
        content.get("label") == "mpsearch"
        or (content.get("name") in ("verdict", "sensitivity") and "results" in content)
    )
    return None if ours else "it is no graph that mpsearch wrote"


def check_writable(file: str | Path) -> None:
    """Fail before the work rather than after it.

    Raises
    ------
    InputError
        If one of the files cannot be written, or is not ours to replace.
    """
    if not Path(file).name:
        raise InputError(f"{str(file)!r} names no file; give one, such as graph.json")
    for path in _paths(file):
        _check(path, _foreign)


def write(found: Analysis, file: str | Path) -> list[Path]:
    """Write the graph to ``file``, and the node data beside it; returns the paths.

    Raises
    ------
    InputError
        If a file cannot be written.
    """
    graph, verdict, sensitivity = _paths(file)
    contents = {
        graph: _graph(found),
        verdict: {
            "name": "verdict",
            "results": {op.name: _verdict(op) for op in found.ops},
            "showExpandedSummaryOnGroupNode": True,
        },
        sensitivity: {
            "name": "sensitivity",
            "results": {op.name: _sensitivity(op) for op in found.ops},
        },
    }
    for path, content in contents.items():
        with written(path, _foreign) as scratch:
            scratch.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return list(contents)


def _graph(found: Analysis) -> dict[str, Any]:
    nodes = [
        {
            "id": op.name,
            "label": op.type,
            "namespace": op.layer.replace("/", "\\/").replace(".", "/"),
            "attrs": [{"key": key, "value": text} for key, text in _facts(op) if text],
            "incomingEdges": [
                {
                    "sourceNodeId": source,
                    "sourceNodeOutputId": "0",
                    "targetNodeInputId": str(place),
                }
                for place, source in enumerate(op.reads)
            ],
        }
        for op in found.ops
    ]
    return {"label": "mpsearch", "graphs": [{"id": "main", "nodes": nodes}]}


def _facts(op: OpAnalysis) -> list[tuple[str, str]]:
    facts = [("verdict", op.verdict), ("alone", value(op.sensitivity)), ("line", op.line)]
    if op.range is not None:
        facts += [
            ("largest", value(op.range.largest)),
            ("smallest", value(op.range.smallest)),
        ]
    return facts


def _verdict(op: OpAnalysis) -> dict[str, Any]:
    return {"value": op.verdict, "bgColor": _COLORS[op.verdict]}


def _sensitivity(op: OpAnalysis) -> dict[str, Any]:
    """A color for each factor of ten from 1e-5 on: Model Explorer's own gradients are linear."""
    if not math.isfinite(op.sensitivity):
        return {"value": "inf", "bgColor": _RAMP[-1]}
    level = math.log10(max(op.sensitivity, 1e-5)) + 5
    return {
        "value": float(value(op.sensitivity)),
        "bgColor": _RAMP[min(int(level), len(_RAMP) - 1)],
    }
