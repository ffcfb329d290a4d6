"""``report.html``: one self-contained file, made from ``result.json`` and ``precision.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import check_schema, listed, printable, read_json, written
from ..package import config as _config
from ..usercode import reason

#: Islands, and rows of an island, that are drawn.
_ISLANDS, _ROWS = 12, 30
#: Heights and widths of the drawing of an island, in CSS pixels.
_ROW, _SIDE = 40, 72


def write(folder: str | Path) -> Path:
    """Write ``report.html`` into a directory that ``optimize`` wrote.

    Raises
    ------
    InputError
        If the directory holds no result, or it cannot be written.
    """
    place = Path(folder)
    config = _config.read(place)
    result = _read(place / "result.json")
    target = place / "report.html"
    try:
        text = render(result, asdict(config))
    except Exception as error:  # whatever an edited file makes of the template and the charts
        raise InputError(
            f"{place / 'result.json'} is no result of this version ({reason(error)}); run mpsearch "
            "optimize again"
        ) from error
    with written(target, _foreign) as scratch:
        scratch.write_text(text, encoding="utf-8")
    return target


_TEXT, _NUMBER, _WHOLE = {"type": "string"}, {"type": ["number", "null"]}, {"type": "integer"}


def _of(**kinds: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(kinds), "properties": kinds}


def _list(kind: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": kind}


_COST = _of(fp32_ops=_WHOLE, islands=_WHOLE, casts=_WHOLE, weight_bytes=_WHOLE, fp32_flops=_NUMBER)
#: What the report reads of ``result.json``.
_RESULT = _of(
    status=_TEXT,
    budget={"type": "number"},
    metric=_TEXT,
    explanation=_TEXT,
    error=_NUMBER,
    error_fp16=_NUMBER,
    error_fp32=_NUMBER,
    heldout_error=_NUMBER,
    fp32_ops=_list(_TEXT),
    notes=_list(_TEXT),
    not_measured=_list(_TEXT),
    costs=_of(fp16=_COST, package=_COST, fp32=_COST),
    kept=_list(
        _of(name=_TEXT, type=_TEXT, layer=_TEXT, line=_TEXT, verdict=_TEXT, sensitivity=_NUMBER)
    ),
    ops=_list(
        _of(
            name=_TEXT,
            type=_TEXT,
            layer=_TEXT,
            line=_TEXT,
            fp32={"type": "boolean"},
            sensitivity=_NUMBER,
            reads=_list(_TEXT),
        )
    ),
    islands=_list(_list(_TEXT)),
    front=_list({"type": "array", "prefixItems": [_WHOLE, _NUMBER], "minItems": 2, "maxItems": 2}),
    trials=_list(_of(fp32_ops=_WHOLE, met={"type": "boolean"})),
    package_bytes=_WHOLE,
)


def _read(file: Path) -> Any:
    """A ``result.json`` of this version.

    Raises
    ------
    InputError
        If it is none.
    """
    found = read_json(file, "a directory that mpsearch optimize wrote")
    what = f"{file} is no result of this version"
    check_schema(found, _RESULT, what, "; run mpsearch optimize again")
    return found


def _foreign(report: Path) -> str | None:
    mine = report.is_file() and report.name in listed(report.parent)
    return None if mine else "mpsearch did not write it"


def render(result: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The report as HTML.

    Parameters
    ----------
    result, config
        The contents of ``result.json`` and ``precision.json``.
    """
    # Here, so that what only searches need not load them.
    import jinja2

    from . import charts

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mpsearch.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        # Names come from models: what could hide or turn text around is spelled out.
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters.update(number=number, size=size, share=share)
    template = environment.get_template("template.html")
    drawn = {
        "sensitivity": charts.sensitivity(result) if _predicted(result) else "",
        "progress": charts.progress(result) if result["trials"] else "",
        "front": charts.front(result) if len(result["front"]) > 1 else "",
    }
    return template.render(
        r=result,
        c=config,
        charts=drawn,
        islands=_islands(result),
        more_islands=max(len(result["islands"]) - _ISLANDS, 0),
        layers=_layers(result),
    )


def _predicted(result: Mapping[str, Any]) -> bool:
    return bool(result["ops"]) and "sensitivity" not in result["not_measured"]


def number(value: float | None) -> str:
    """Three digits; what JSON holds as null is infinite."""
    return "inf" if value is None or math.isinf(value) else f"{value:.3g}"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def share(value: float) -> str:
    """A share as percents."""
    return f"{100 * value:.3g}%"


def _layers(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """FP32 ops by PyTorch module, those with most of them first."""
    found: dict[str, dict[str, Any]] = {}
    for op in result["ops"]:
        row = found.setdefault(op["layer"] or "(no module)", {"fp32": 0, "ops": 0, "line": ""})
        row["ops"] += 1
        if op["fp32"]:
            row["fp32"] += 1
            row["line"] = row["line"] or op["line"]
    rows = [{"layer": layer, **row} for layer, row in found.items() if row["fp32"]]
    return sorted(rows, key=lambda row: -row["fp32"])


def _islands(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The largest islands as arc diagrams: rows in execution order, an arc for each value read."""
    ops = {op["name"]: op for op in result["ops"]}
    place = {name: i for i, name in enumerate(ops)}
    readers: dict[str, list[str]] = {}
    for op in result["ops"]:
        for source in op["reads"]:
            readers.setdefault(source, []).append(op["name"])
    drawn = []
    for members in sorted(result["islands"], key=len, reverse=True)[:_ISLANDS]:
        near = set(members)
        for name in members:
            near.update(ops[name]["reads"])
            near.update(readers.get(name, ()))
        names = sorted(near, key=place.__getitem__)
        rows = [ops[name] for name in names[:_ROWS]]
        drawn.append(
            {
                "size": len(members),
                "rows": rows,
                "hidden": len(names) - len(rows),
                "height": _ROW * len(rows),
                "side": _SIDE,
                "arcs": _arcs(rows),
            }
        )
    return drawn


def _arcs(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    line = {op["name"]: i for i, op in enumerate(rows)}
    arcs = []
    for reader, op in enumerate(rows):
        for source in op["reads"]:
            if source in line:
                start, end = (_ROW * (i + 0.5) for i in (line[source], reader))
                bend = min(8 + 9 * (reader - line[source]), _SIDE - 16)
                x = _SIDE - 12
                path = f"M{x} {start:g} C{x - bend} {start:g} {x - bend} {end:g} {x} {end:g}"
                cast = op["fp32"] != rows[line[source]]["fp32"]
                arcs.append({"path": path, "cast": cast})
    return arcs
