"""What the terminal shows: tables that fit 80 columns."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation import coverage
from ..explain.remedies import Remedy
from ..files import printable
from .html import share, size

if TYPE_CHECKING:
    from ..results.analysis import Analysis
    from ..results.check import CheckResult
    from ..results.front import Front
    from ..results.result import Result, TrialRow

#: Text and what it means ("good", "bad", "quiet") -> text as the terminal takes it.
Paint = Callable[[str, str], str]

_WIDTH = 78


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(printable(text), width)


def value(error: float | None) -> str:
    """An error, or a dash where there is none."""
    return "-" if error is None else f"{error:.3g}"


def summary(result: Result, written: Path | None, paint: Paint) -> str:
    """What ``mpsearch optimize`` prints."""
    mood = "good" if result.met else "bad"
    lines = [paint(line, mood) for line in _wrap(result.explanation, _WIDTH)]
    lines += [
        "",
        "  error  all FP16      " + value(result.error_fp16),
        f"         all FP32      {value(result.error_fp32)}",
    ]
    if written is not None:
        package = result.costs["package"]
        lines += [
            f"         this package  {value(result.error)}   ({printable(result.metric)}, "
            f"budget {result.budget:g})",
            f"         held-out      {value(result.heldout_error)}" + _promised(result),
            f"  cost   {len(result.kept)} of {result.candidate_ops} ops in FP32"
            + _bound(result)
            + f", in {_count(package.islands, 'island')} with {result.casts} casts",
            f"         {share(package.fp32_flops)} of the arithmetic leaves the Neural Engine",
            f"         {size(result.package_bytes)} on disk" + _stored(result),
        ]
    lines.append(f"  data   {printable(result.understood)}")
    lines.append(
        f"  search {result.evaluations} evaluations, {result.seconds:.1f} s, "
        f"{result.forward_equivalents:.1f} forwards"
    )
    if result.kept:
        rows = [("op", "type", "layer or line", "why", "alone")]
        rows += [
            (
                op.name,
                op.type,
                op.layer or op.line or "-",
                "runtime fault" if op.name in result.pinned_by_hazard else op.verdict or "-",
                "-"
                if "alone" in result.not_measured
                else "inf"
                if op.sensitivity is None
                else f"{op.sensitivity:.2g}",
            )
            for op in result.kept
        ]
        lines += ["", *_columns(rows, (18, 14, 22, 13, 7))]
    if result.rescale_hint:
        lines += ["", *_wrap(f"or: {result.rescale_hint}", _WIDTH)]
    places = Counter((remedy.title, remedy.kind) for remedy in result.remedies)
    for (title, kind), count in places.items():
        where = f"{kind}, {count} places" if count > 1 else kind
        lines += ["", *_wrap(f"or: {title} ({where}; see report.html)", _WIDTH)]
    for note in result.notes:
        lines += ["", *_wrap(f"note: {note}", _WIDTH)]
    if written is not None:
        lines += ["", f"wrote {printable(str(written))}/"]
    return "\n".join(lines)


def _bound(result: Result) -> str:
    if result.proven:
        return " (proven least)"
    return f" (at least {result.lower_bound})" if result.lower_bound else ""


def _promised(result: Result) -> str:
    if result.coverage is None or result.confidence is None:
        return ""
    return (
        f"   (holds for {math.floor(100 * result.coverage)}% of inputs or more, "
        f"{100 * result.confidence:g}% sure)"
    )


def _stored(result: Result) -> str:
    stored = result.weights
    if stored is None:
        return ""
    return (
        f", {stored.weights} of {stored.candidates} weights as {stored.dtype} "
        f"(before: {size(stored.bytes_before)})"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def passes(trials: Sequence[TrialRow]) -> str:
    """What each pass of the search did, for ``--verbose``."""
    rows = [("pass", "evaluations", "met", "fewest FP32 ops so far")]
    best: int | None = None
    for name, group in itertools.groupby(trials, key=lambda t: t.asked_by):
        asked = list(group)
        met = [t.fp32_ops for t in asked if t.met]
        best = min([*met, *([] if best is None else [best])], default=None)
        rows.append((name, str(len(asked)), str(len(met)), "-" if best is None else str(best)))
    return "\n".join(_columns(rows, (12, 11, 5, 22)))


def analysis(found: Analysis, top: int, by: str, paint: Paint) -> str:
    """What ``mpsearch analyze`` prints."""
    healthy = found.is_precision and not found.culprits
    mood = "good" if healthy else "bad"
    lines = [paint(line, mood) for line in _wrap(found.explanation, _WIDTH)]
    lines += [
        f"\n  error  all FP16  {value(found.error_fp16)}",
        f"         all FP32  {value(found.error_fp32)}   ({printable(found.metric)})",
    ]
    if by == "layer":
        header, limits = (
            ("layer", "harmful", "of", "verdict", "alone", "line"),
            (24, 7, 4, 12, 7, 14),
        )
        rows = [
            (r.layer, str(r.harmful), str(r.ops), r.verdict, value(r.sensitivity), r.line or "-")
            for r in found.layers
            if r.harmful
        ]
    else:
        header, limits = ("op", "type", "layer or line", "verdict", "alone", "largest"), _OPS
        rows = [
            (
                op.name,
                op.type,
                op.layer or op.line or "-",
                op.verdict,
                value(op.sensitivity),
                "-" if op.range is None else value(op.range.largest),
            )
            for op in found.culprits
        ]
    if rows:
        lines += ["", *_columns([header, *rows[:top]], limits)]
        if len(rows) > top:
            lines.append(f"  and {len(rows) - top} more; --top {len(rows)} lists all")
    for remedy in found.remedies:
        lines += ["", *_remedy(remedy, paint)]
    for note in found.notes:
        lines += ["", *_wrap(f"note: {note}", _WIDTH)]
    return "\n".join(lines)


_OPS = (16, 14, 18, 12, 7, 8)


def _remedy(remedy: Remedy, paint: Paint) -> list[str]:
    places = ", ".join((remedy.layers or remedy.lines)[:3]) or "the model"
    more = len(remedy.layers or remedy.lines) - 3
    places += f" and {more} more" if more > 0 else ""
    head = f"instead of FP32, for {_count(len(remedy.ops), 'op')} in {places}: {remedy.title}"
    code = [f"    {line}".rstrip() for line in printable(remedy.code).splitlines()]
    return [*_wrap(head, _WIDTH), "", *[paint(line, "quiet") for line in code]]


def front(found: Front) -> str:
    """What ``mpsearch pareto`` prints."""
    total = f"(of {found.candidate_ops} ops)"
    lines = [f"  FP32 ops  {printable(found.metric):>10}    held-out   casts   {total}"]
    lines += [
        f"  {len(point.fp32_ops):8}  {value(point.error):>10}  "
        f"{value(point.heldout_error):>10}  {point.casts:6}"
        for point in found.points
    ]
    return "\n".join([*lines, f"  all FP32  {value(found.error_fp32):>10}"])


def check(report: CheckResult, paint: Paint) -> str:
    """What ``mpsearch check`` prints."""
    verdict = "holds" if report.holds else "does not hold"
    lines = [
        paint(
            f"the config {verdict}: error {value(report.error)}, budget {report.budget:g} "
            f"({printable(report.metric)}; all FP16 {value(report.error_fp16)}, "
            f"all FP32 {value(report.error_fp32)})",
            "good" if report.holds else "bad",
        )
    ]
    if report.coverage is not None and report.confidence is not None:
        lines += _wrap(
            f"{report.broken or 'None'} of {report.samples} samples broke the budget: if the "
            f"search has not seen them, {coverage.words(report.coverage, report.confidence)}.",
            _WIDTH,
        )
    if report.outgrown:
        some = ", ".join(report.outgrown[:4])
        more = f" and {len(report.outgrown) - 4} more" if len(report.outgrown) > 4 else ""
        lines += _wrap(
            f"outgrown: {some}{more} may overflow with these weights although the config scales "
            "them; run optimize for new exponents",
            _WIDTH,
        )
    lines += [
        printable(f"not in the model: {op.name} ({op.type}, {op.layer or 'no layer'})")
        for op in report.unmatched
    ]
    return "\n".join(lines)


def _columns(rows: Sequence[tuple[Any, ...]], limits: tuple[int, ...]) -> list[str]:
    """Rows in columns no wider than their limits; what is cut loses its front."""
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [min(max(len(row[i]) for row in rows), limit) for i, limit in enumerate(limits)]
    return ["  " + "  ".join(map(_fit, row, widths)).rstrip() for row in rows]


def _fit(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else "..." + text[-(width - 3) :]
