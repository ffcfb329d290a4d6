"""The charts of the report, as SVG that takes its text color from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..files import printable

#: Stands for the page's text color until the SVG is written.
_INK = "#010203"
#: Seen on white and on black alike.
FP16, FP32, BROKEN = "#7d8590", "#d9730d", "#b0b6be"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def sensitivity(result: Mapping[str, Any]) -> str:
    """Every op's error alone in FP16, in execution order: predicted, and measured where kept."""
    rows = list(enumerate(result["ops"]))
    known = [op["sensitivity"] for _, op in rows if op["sensitivity"]]
    # What overflows stands above all else, kept or not: nothing is more sensitive.
    top = 3 * (max([*known, result["budget"] if result["metric"] == "rel_l2" else 0.0]) or 1.0)

    def draw(axes: Axes) -> None:
        for fp32, color, label in ((False, FP16, "FP16"), (True, FP32, "FP32")):
            mine = [(i, op["sensitivity"]) for i, op in rows if op["fp32"] is fp32]
            finite = [(i, s) for i, s in mine if s]
            lost = [i for i, s in mine if s is None]
            axes.plot(*_columns(finite), "o", color=color, markersize=4, label=label)
            axes.plot(lost, [top] * len(lost), "^", color=color, markersize=6)
        axes.set_yscale("log")
        if result["metric"] == "rel_l2":
            axes.axhline(result["budget"], color=_INK, linewidth=0.8, linestyle="--")
        axes.set_xlabel("op, in execution order (triangle: overflows)")
        axes.set_ylabel("error alone, as predicted")
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=2)

    return _svg("sensitivity", draw)


def progress(result: Mapping[str, Any]) -> str:
    """Every evaluation of the search: FP32 ops tried, and whether the budget held."""
    trials = list(enumerate(result["trials"], start=1))

    def draw(axes: Axes) -> None:
        met = [(i, t["fp32_ops"]) for i, t in trials if t["met"]]
        broken = [(i, t["fp32_ops"]) for i, t in trials if t["met"] is False]
        axes.plot(*_columns(broken), "x", color=BROKEN, markersize=4, label="budget broken")
        axes.plot(*_columns(met), "o", color=FP32, markersize=4, label="met")
        best = [min(n for j, n in met if j <= i) for i, _ in met]
        axes.step([i for i, _ in met], best, where="post", color=FP32, linewidth=1)
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("evaluation")
        axes.set_ylabel("ops in FP32")
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=2)

    return _svg("progress", draw)


def front(result: Mapping[str, Any]) -> str:
    """The least error seen with each number of FP32 ops."""
    points = [(n, e) for n, e in result["front"] if e is not None]

    def draw(axes: Axes) -> None:
        axes.plot(
            *_columns(points),
            "o-",
            color=FP32,
            markersize=4,
            linewidth=1,
            drawstyle="steps-post",
        )
        axes.axhline(result["budget"], color=_INK, linewidth=0.8, linestyle="--", label="budget")
        if all(e > 0 for _, e in points) and result["budget"] > 0:
            axes.set_yscale("log")
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("ops in FP32")
        axes.set_ylabel(printable(f"error ({result['metric']})"), parse_math=False)
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.2))

    return _svg("front", draw)


def _columns(pairs: list[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def _svg(name: str, draw: Callable[[Axes], None]) -> str:
    """An SVG without a size of its own; the same drawing gives the same text."""
    # The salt keeps the ids of several drawings on one page apart.
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(5.0, 3.0), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, _, rest = text.partition(">")
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} aria-hidden="true">{rest}'
