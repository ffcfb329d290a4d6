"""What the terminal shows: tables that fit 80 columns."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..evaluation import coverage
from ..explain.remedies import Remedy
from ..files import printable
from ..options import IN_DB
from ..package.config import KeptOp
from ..results.analysis import Analysis
from ..results.check import CheckResult
from ..results.data import ResultData, TrialRow
from ..results.front import Front
from ..results.plain import counted, error_of, in_metric, share, size
from ..results.verified import OpOnDevice, Verified

#: Text and what it means ("good", "bad", "quiet") -> text as the terminal takes it.
Paint = Callable[[str, str], str]

#: Columns that text takes where nobody says how many there are.
WIDTH = 78
#: Rows that a table shows at most; what has more is shown by its worst. Of a list of ops so many.
_ROWS, _NAMED = 20, 8
#: Columns to which the first column of a table is cut at most.
_NARROWEST = 6


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(printable(text), width)


def _paragraphs(text: str, width: int) -> list[str]:
    return list(itertools.chain.from_iterable(_wrap(part, width) for part in text.split("\n")))


def _hang(lines: Sequence[str], width: int) -> list[str]:
    """Lines of labels and values, what is too long on lines of its own beneath its value."""
    wrapped = (textwrap.wrap(line, width, subsequent_indent=" " * 9) for line in lines)
    return list(itertools.chain.from_iterable(wrapped))


def value(error: float | None) -> str:
    """An error, or a dash where there is none."""
    return "-" if error is None else f"{error:.3g}"


def summary(result: ResultData, written: Path | None, paint: Paint, width: int = WIDTH) -> str:
    """What ``mpsearch optimize`` prints."""
    mood = "good" if result.met else "bad"
    head = [paint(line, mood) for line in _paragraphs(result.explanation, width)]
    changed = "   (of the changed program)" if result.rewrites or result.rescaling else ""
    lines = [
        "  error  all FP16      " + value(result.error_fp16) + changed,
        f"         all FP32      {value(result.error_fp32)}",
    ]
    if result.costs:
        package = result.costs["package"]
        lines += [
            f"         this package  {value(result.error)}   ({printable(result.metric)}, "
            f"budget {result.budget:g})",
            f"         and held-out  {value(result.heldout_error)}" + _promised(result),
            f"  cost   {len(result.kept)} of {result.candidate_ops} ops in FP32"
            + _bound(result)
            + f", in {counted(package.islands, 'island')} with {counted(result.casts, 'cast')}",
            f"         {share(package.fp32_flops)} of the arithmetic leaves the Neural Engine",
            f"         {size(result.package_bytes)} on disk" + _stored(result),
        ]
    held = f"; {result.heldout_samples} of them held out" if result.heldout_samples else ""
    lines.append(f"  data   {printable(result.understood)}{held}")
    lines.append(
        f"  search {counted(result.evaluations, 'set')} tried, for "
        f"{_forwards(result)} forwards of all samples; {result.seconds:.1f} s in all"
    )
    lines = [*head, "", *_hang(lines, width)]
    if result.kept:
        lines += ["", *_kept(result, width)]
    if result.rescale_hint:
        lines += ["", *_wrap(f"or try {result.rescale_hint}", width)]
    offered: Counter[tuple[str, str]] = Counter()
    for remedy in result.remedies:
        offered[remedy.title, remedy.kind] += len(remedy.ops)
    for (title, kind), count in offered.items():
        said = f"or in PyTorch, for {counted(count, 'op')}: {title}"
        lines += ["", *_wrap(f"{said} ({kind}; see report.html)", width)]
    for note in result.notes:
        lines += ["", *_wrap(f"note: {note}", width)]
    if written is not None:
        lines += ["", f"wrote {printable(str(written))}/"]
    return "\n".join(lines)


def _kept(result: ResultData, width: int) -> list[str]:
    """The FP32 ops in execution order: those that err most alone."""
    worst = sorted(result.kept, key=lambda op: _alone(result, op))[:_ROWS]
    shown = [op for op in result.kept if op in worst]
    measured = "alone" not in result.not_measured
    rows = [("op", "type", "layer or line", "why", "alone")]
    for op in shown:
        why = "runtime fault" if op.name in result.pinned_by_hazard else op.verdict or "-"
        alone = op.sensitivity
        error = error_of(None, result.metric) if alone is None else f"{alone:.2g}"
        where = op.layer or op.line or "-"
        rows.append((op.name, op.type, where, why, error if measured else "-"))
    lines = _columns(rows, (18, 14, 22, 13, 7), width)
    if more := len(result.kept) - len(shown):
        less = " that err less alone" if measured else ""
        lines.append(f"  and {more} more{less}: report.html")
    return [*lines, *_wrap("  (op: one operation of the converted model)", width)]


def _alone(result: ResultData, op: KeptOp) -> float:
    """What sorts the ops that do most harm alone to the front; their order where that is open."""
    if "alone" in result.not_measured:
        return 0.0
    if op.sensitivity is None:
        return -math.inf
    return op.sensitivity if result.metric in IN_DB else -op.sensitivity


def _forwards(result: ResultData) -> str:
    count = result.forward_equivalents
    return "under 0.1" if count < 0.1 else f"{count:.1f}"


def _bound(result: ResultData) -> str:
    if result.proven:
        return " (proven least)"
    return f" (at least {result.lower_bound})" if result.lower_bound else ""


def _promised(result: ResultData) -> str:
    if result.coverage is None or result.confidence is None:
        return ""
    return (
        f"   (holds for {math.floor(100 * result.coverage)}% of inputs or more, "
        f"{100 * result.confidence:g}% sure)"
    )


def _stored(result: ResultData) -> str:
    stored = result.weights
    if stored is None:
        return ""
    return (
        f", {stored.weights} of {stored.candidates} weights as {stored.dtype} "
        f"(before: {size(stored.bytes_before)})"
    )


def passes(trials: Sequence[TrialRow]) -> str:
    """What each pass of the search did, for ``--verbose``."""
    rows = [("pass", "evaluations", "met", "fewest FP32 ops so far")]
    best: int | None = None
    for name, group in itertools.groupby(trials, key=lambda t: t.asked_by):
        asked = list(group)
        met = [t.fp32_ops for t in asked if t.met]
        best = min([*met, *([] if best is None else [best])], default=None)
        rows.append((name, str(len(asked)), str(len(met)), "-" if best is None else str(best)))
    return "\n".join(_columns(rows, (12, 11, 5, 22), WIDTH))


def analysis(found: Analysis, top: int, by: str, paint: Paint, width: int = WIDTH) -> str:
    """What ``mpsearch analyze`` prints."""
    healthy = found.is_precision and not found.culprits

    def alone(amplitude: float) -> str:
        return value(in_metric(amplitude, found.alone_by))

    mood = "good" if healthy else "bad"
    lines = [paint(line, mood) for line in _paragraphs(found.explanation, width)]
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
            (r.layer, str(r.harmful), str(r.ops), r.verdict, alone(r.sensitivity), r.line or "-")
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
                alone(op.sensitivity),
                "-" if op.range is None else value(op.range.largest),
            )
            for op in found.culprits
        ]
    if rows:
        lines += ["", *_columns([header, *rows[:top]], limits, width)]
        if len(rows) > top:
            lines.append(f"  and {len(rows) - top} more; --top {len(rows)} lists all")
    for remedy in found.remedies:
        lines += ["", *_remedy(remedy, paint, width)]
    for note in found.notes:
        lines += ["", *_wrap(f"note: {note}", width)]
    return "\n".join(lines)


_OPS = (16, 14, 18, 12, 7, 8)


def _remedy(remedy: Remedy, paint: Paint, width: int) -> list[str]:
    places = ", ".join((remedy.layers or remedy.lines)[:3]) or "the model"
    more = len(remedy.layers or remedy.lines) - 3
    places += f" and {more} more layers" if more > 0 else ""
    head = f"instead of FP32, for {counted(len(remedy.ops), 'op')} in {places}: {remedy.title}"
    code = [f"    {line}".rstrip() for line in printable(remedy.code).splitlines()]
    return [*_wrap(head, width), "", *[paint(line, "quiet") for line in code]]


def front(found: Front) -> str:
    """What ``mpsearch pareto`` prints."""
    total = f"(of {found.candidate_ops} ops)"
    lines = [f"  FP32 ops  {printable(found.metric):>10}    held-out  ~casts   {total}"]
    lines += [
        f"  {len(point.fp32_ops):8}  {value(point.error):>10}  "
        f"{value(point.heldout_error):>10}  {point.casts:6}"
        for point in found.points
    ]
    return "\n".join([*lines, f"  all FP32  {value(found.error_fp32):>10}"])


def check(report: CheckResult, paint: Paint, width: int = WIDTH) -> str:
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
    if len(report.unmatched) > _ROWS:
        lines += _wrap(
            f"{len(report.unmatched)} ops of the config are not in the model: it was made for "
            "another one. Run optimize.",
            width,
        )
    elif report.unmatched and not report.same_model:
        lines += _wrap("Ops of the config are not in the model: it may be another one.", width)
    lines += [printable(f"not in the model: {op}") for op in report.unmatched[:_ROWS]]
    lines += [printable(f"matched by its place: {op}") for op in report.moved]
    if not report.same_model:
        lines.append("The weights or the program are not those that the config was made from.")
    if report.broken is not None:
        said = f"{report.broken or 'None'} of {report.samples} samples broke the budget"
        if report.coverage is not None and report.confidence is not None:
            words = coverage.words(report.coverage, report.confidence)
            said += f": if the search has not seen them, {words}" if report.coverage else ""
        lines += _wrap(f"{said}.", width)
    if report.outgrown:
        some = ", ".join(report.outgrown[:4])
        more = f" and {len(report.outgrown) - 4} more" if len(report.outgrown) > 4 else ""
        lines += _wrap(
            f"outgrown: {some}{more} may overflow with these weights although the config scales "
            "them; run optimize for new exponents",
            width,
        )
    for op in report.broken_by[:_NAMED]:
        where = ", ".join(filter(None, (op.type, op.layer, op.line)))
        lines.append(printable(f"broken by {op.name} ({where}): {op.verdict}"))
    if len(report.broken_by) > _NAMED:
        lines.append(f"and by {counted(len(report.broken_by) - _NAMED, 'op')} more (--json)")
    if not report.holds:
        lines += _wrap(_advice(report), width)
    return "\n".join(lines)


def _advice(report: CheckResult) -> str:
    """What to do where a config does not hold."""
    if not report.fp32_holds:
        return (
            "With every op in FP32 the error is beyond the budget too, so precision is not the "
            "cause: check the samples, or raise the budget."
        )
    said = "Run mpsearch optimize on this model for a set that holds."
    if report.broken_by or report.unmatched or report.outgrown:
        return said
    return f"No op breaks the budget alone, the rounding of many does. {said}"


def verified(report: Verified, paint: Paint, width: int = WIDTH) -> str:
    """What ``mpsearch verify`` prints."""
    device = ", ".join(f"{name} {said}" for name, said in report.device.items())
    lines = [printable(f"on {device}, {report.samples} samples")]
    if report.error is not None:
        verdict = "holds" if report.holds else "does not hold"
        lines.append(
            paint(
                f"the package {verdict}: error {value(report.error)}, budget {report.budget:g} "
                f"({printable(report.metric)}; promised {value(report.promised)}, simulated "
                f"{value(report.simulated)})",
                "good" if report.holds else "bad",
            )
        )
    for row in report.outputs:
        error = "" if row.error is None else f"error {value(row.error)}, "
        lines.append(printable(f"{row.name}: {error}{row.apart:.2g} from the simulation"))
    if report.predict_milliseconds is not None:
        lines.append(
            f"loads in {value(report.load_milliseconds)} ms, predicts in "
            f"{value(report.predict_milliseconds)} ms"
        )
    where: dict[str, list[OpOnDevice]] = {}
    for op in report.ops:
        where.setdefault(op.device or "unknown", []).append(op)
    for place, ops in where.items():
        share = sum(op.milliseconds or 0.0 for op in ops)
        lines.append(f"{place}: {len(ops)} ops, {share:.3g} ms")
    lines += [printable(f"parts from FP32 at {name}") for name in report.parted or ()]
    return "\n".join(lines)


def _columns(rows: Sequence[tuple[Any, ...]], limits: tuple[int, ...], width: int) -> list[str]:
    """Rows in columns no wider than their limits, but for room that is left; what is cut loses its
    front.

    Where they are too wide together, the second is left out until three are left, and the first
    gives way.
    """
    rows = [tuple(map(printable, row)) for row in rows]
    wanted = [max(len(row[i]) for row in rows) for i in range(len(limits))]
    widths = [min(full, limit) for full, limit in zip(wanted, limits, strict=True)]
    spare = width - sum(widths) - 2 * len(widths)
    for place, full in enumerate(wanted):
        widths[place] += (more := max(min(full - widths[place], spare), 0))
        spare -= more
    while sum(widths) + 2 * len(widths) > width:
        if len(widths) > 3:
            rows = [(row[0], *row[2:]) for row in rows]
            del widths[1]
        elif widths[0] > _NARROWEST:
            widths[0] -= 1
        else:
            break
    return ["  " + "  ".join(map(_fit, row, widths)).rstrip() for row in rows]


def _fit(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else "..." + text[-(width - 3) :]
