"""``report.html``: one self-contained file, made from ``result.json`` and ``precision.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..files import printable
from ..results.plain import error_of, share, size

#: Fewer trials than this are no progress to draw.
_TRIALS = 2
#: Islands, and rows of an island, that are drawn.
_ISLANDS, _ROWS = 12, 30
#: Heights and widths of the drawing of an island, in CSS pixels.
_ROW, _SIDE = 40, 72


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
    environment.filters.update(number=number, size=size, share=share, error_of=error_of)
    template = environment.get_template("template.html")
    drawn = {
        "sensitivity": charts.sensitivity(result) if _predicted(result) else "",
        "progress": charts.progress(result) if len(result["trials"]) >= _TRIALS else "",
        "front": charts.front(result) if len(result["front"]) > 1 else "",
    }
    return template.render(
        r=result,
        c=config,
        charts=drawn,
        islands=_islands(result),
        more_islands=max(len(result["islands"]) - _ISLANDS, 0),
        layers=_layers(result),
        scales=_scales(result),
        spellings=_spellings(result),
    )


def notebook(result: Mapping[str, Any], met: bool) -> str:
    """A result as a notebook shows it: the finding, its numbers, and the worst ops.

    Parameters
    ----------
    result
        The content of ``result.json``.
    met
        Whether the budget is met.
    """
    from markupsafe import Markup

    def cell(tag: str, value: Any) -> Markup:
        shown = printable(value if isinstance(value, str) else number(value))
        return Markup('<{0} style="text-align:left">{1}</{0}>').format(tag, shown)

    def table(rows: Sequence[Sequence[Any]], head: Sequence[str] = ()) -> Markup:
        made = [Markup("").join(cell("th", name) for name in head)] if head else []
        made += [Markup("").join(cell("td", value) for value in row) for row in rows]
        body = Markup("").join(Markup("<tr>{}</tr>").format(row) for row in made)
        return Markup("<table>{}</table>").format(body)

    missing = {*result["not_measured"], *([] if result["heldout_samples"] else ["heldout_error"])}
    errors = {
        result["metric"]: "error",
        "budget": "budget",
        "held-out": "heldout_error",
        "all FP16": "error_fp16",
        "all FP32": "error_fp32",
    }
    metric = result["metric"]
    values = ["-" if key in missing else error_of(result[key], metric) for key in errors.values()]
    kept = result["kept"]
    found = Markup("<div><p><b>{}</b> {}</p>{}").format(
        "✓" if met else "✗",
        printable(result["explanation"].replace("\n", " ")),
        table([values], list(errors)),
    )
    if kept:
        rows = [
            (op["name"], op["type"], op["layer"] or op["line"] or "-", op["verdict"] or "-")
            for op in kept[:_ROWS]
        ]
        found += table(rows, ("op in FP32", "type", "layer or line", "why"))
    if len(kept) > _ROWS:
        found += Markup("<p>and {} more</p>").format(len(kept) - _ROWS)
    return str(found + Markup("</div>"))


def _predicted(result: Mapping[str, Any]) -> bool:
    return bool(result["ops"]) and "sensitivity" not in result["not_measured"]


def number(value: float | None) -> str:
    """Three digits; what JSON holds as null is infinite."""
    return "inf" if value is None or math.isinf(value) else f"{value:.3g}"


#: What :mod:`mpsearch.scaling.stable` makes of ops, by kind.
_SPELLINGS = {
    "softplus": "relu(x) + log(1 + exp(-|x|))",
    "logsumexp": "with the largest value taken out first",
    "log_softmax": "x less its largest value, less the logarithm of the sum of exponentials",
    "softmax": "softmax, its largest value taken out, for exponentials divided by their sum",
    "finite_mask": "a mask of -30000 or -40000, where FP16 is infinite",
    "row_mask": "the mask (input {input}) less its largest value in each row, which softmax does "
    "not see: rows that are masked from end to end keep their scores",
    "key_bias": "bias[{channels}] set to 0: only keys of attention see it, it moves all scores of "
    "a query alike, and softmax does not see that",
    "exp": "exp(x - {exponent} ln 2), times 2^{exponent}",
    "log": "log(x times 2^-{exponent}), plus {exponent} ln 2",
}


def _spellings(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """The ops that are rewritten, and how, in words."""
    layers = {op["name"]: op["layer"] for op in result["ops"]}
    rows = []
    for rewrite in result["rewrites"]:
        spans = ", ".join(f"{start}:{end}" for start, end in rewrite.get("channels", ()))
        known = {"exponent": 0, "input": "", **rewrite, "channels": spans}
        how = _SPELLINGS[rewrite["kind"]].format(**known)
        layer = layers.get(rewrite["op"], "")
        rows.append({"op": rewrite["op"], "type": rewrite["type"], "layer": layer, "how": how})
    return rows


def _layers(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """FP32 ops by PyTorch module, those with most of them first."""
    found: dict[str, dict[str, Any]] = {}
    for op in result["ops"]:
        layer = op["layer"] or "(the model itself)"
        row = found.setdefault(layer, {"fp32": 0, "ops": 0, "line": ""})
        row["ops"] += 1
        if op["fp32"]:
            row["fp32"] += 1
            row["line"] = row["line"] or op["line"]
    rows = [{"layer": layer, **row} for layer, row in found.items() if row["fp32"]]
    return sorted(rows, key=lambda row: -row["fp32"])


#: Inputs of ops that are parameters of PyTorch modules by the same name.
_PARAMETERS = {
    **dict.fromkeys(["linear", "conv", "conv_transpose"], ("weight", "bias")),
    "gather": ("x",),
}


def _scales(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What ops take times a power of two, an input a row, and what that is in PyTorch."""
    rows = []
    for scale in (result["rescaling"] or {"scales": []})["scales"]:
        for name, exponent in scale["inputs"].items():
            folded, torch = name in scale["folded"], ""
            if folded and scale["layer"] and name in _PARAMETERS.get(scale["type"], ()):
                parameter = "weight" if name == "x" else name
                by = f"{'multiply' if exponent > 0 else 'divide'}"
                torch = f"{by} {scale['layer']}.{parameter} by {2 ** abs(exponent)}"
            rows.append(
                {
                    "op": scale["op"],
                    "type": scale["type"],
                    "input": name,
                    "exponent": exponent,
                    "how": "in the constant" if folded else "one more op",
                    "torch": torch,
                }
            )
    return rows


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
