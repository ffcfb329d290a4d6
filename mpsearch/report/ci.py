"""What a check says to machines that build: JUnit XML, and Markdown as GitHub shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

from ..evaluation import coverage
from ..files import printable
from .text import value

if TYPE_CHECKING:
    from ..results.check import CheckResult

#: Rows of ops that a summary lists.
_ROWS = 20


def _questions(report: CheckResult) -> dict[str, str]:
    """What was asked of a config, and what is wrong there; empty where nothing is."""
    over = "" if report.holds or report.unmatched else _measured(report)
    return {
        "the budget holds": over,
        "every op of the config is in the model": "; ".join(
            f"{op.name} ({op.type}, {op.layer or 'no layer'})" for op in report.unmatched
        ),
        "no tensor has outgrown its exponent": ", ".join(report.outgrown),
    }


def _measured(report: CheckResult) -> str:
    said = f"error {value(report.error)}, budget {report.budget:g} ({report.metric})"
    if report.broken is not None:
        said += f"; {report.broken} of {report.samples} samples broke the budget"
    return said


def junit(report: CheckResult, config: str) -> str:
    """A test suite of three tests, as the JUnit plugins of Jenkins and GitLab read it.

    What has been outgrown is skipped, not failed: the budget still holds.
    """
    questions = _questions(report)
    failed = [name for name, wrong in questions.items() if wrong and "outgrown" not in name]
    suite = ElementTree.Element(
        "testsuite",
        name=printable(f"mpsearch check {config}"),
        tests=str(len(questions)),
        failures=str(len(failed)),
    )
    for name, wrong in questions.items():
        case = ElementTree.SubElement(suite, "testcase", classname="mpsearch.check", name=name)
        if wrong:
            kind = "failure" if name in failed else "skipped"
            ElementTree.SubElement(case, kind, message=printable(wrong))
    ElementTree.SubElement(suite, "system-out").text = printable(_measured(report))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def markdown(report: CheckResult, config: str) -> str:
    """A summary, as ``$GITHUB_STEP_SUMMARY`` takes it."""
    mark = "✅ holds" if report.holds else "❌ does not hold"
    lines = [
        f"### {mark}: `{_plain(config)}`",
        "",
        f"| {_plain(report.metric)} | budget | all FP16 | all FP32 | samples over |",
        "|---|---|---|---|---|",
        f"| {value(report.error)} | {report.budget:g} | {value(report.error_fp16)} "
        f"| {value(report.error_fp32)} "
        f"| {'-' if report.broken is None else f'{report.broken} of {report.samples}'} |",
    ]
    if report.coverage is not None and report.confidence is not None:
        said = coverage.words(report.coverage, report.confidence)
        lines += ["", f"If the search has not seen these samples, {said}."]
    if report.unmatched:
        lines += ["", "Not in the model:", ""]
        lines += [f"- `{_plain(op.name)}` ({_plain(op.type)})" for op in report.unmatched[:_ROWS]]
    if report.moved:
        lines += ["", "Found by their places, under other names:", ""]
        lines += [f"- {_plain(str(op))}" for op in report.moved[:_ROWS]]
    if report.outgrown:
        lines += ["", "May overflow although the config scales them; run optimize:", ""]
        lines += [f"- `{_plain(name)}`" for name in report.outgrown[:_ROWS]]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """A name from a model, as text that no Markdown stands in."""
    return printable(text).translate({ord(c): f"\\{c}" for c in "|<>"}).replace("`", "'")
