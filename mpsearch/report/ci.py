"""What a check says to machines that build: JUnit XML, SARIF, and Markdown as GitHub shows it."""

from __future__ import annotations

import contextlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from ..evaluation import coverage
from ..files import printable
from ..results.check import CheckResult
from .text import value

#: Rows of ops that a summary lists.
_ROWS = 20


def _questions(report: CheckResult) -> dict[str, str]:
    """What was asked of a config, and what is wrong there; empty where nothing is."""
    over = "" if report.holds or report.unmatched else _measured(report)
    return {
        "the budget holds": over,
        "every op of the config is in the model": "; ".join(map(str, report.unmatched)),
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
    if report.broken_by:
        lines += ["", "| broken by | type | layer | line | why |", "|---|---|---|---|---|"]
        for op in report.broken_by:
            cells = (op.name, op.type, op.layer, op.line, op.verdict)
            lines.append(f"| {' | '.join(_plain(cell) or '-' for cell in cells)} |")
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


def sarif(report: CheckResult, config: str) -> str:
    """SARIF 2.1.0 (OASIS, 2020), which GitHub and others show at the lines of Python.

    A result for every op that breaks the budget, and for every op of the config that is not there;
    those whose line is not known stand at the config. Files below the working directory are named
    from there, as code hosts expect.
    """
    found = [
        (op, op.verdict.replace(" ", "-"), f"FP16 breaks {op.name} ({op.type}): {op.verdict}")
        for op in report.broken_by
    ]
    found += [(op, "not-in-the-model", f"{op} is not there") for op in report.unmatched]
    rules = [{"id": rule} for rule in dict.fromkeys(rule for _, rule, _ in found)]
    results = [
        {
            "ruleId": rule,
            "level": "error",
            "message": {"text": printable(f"{said}. {_measured(report)}.")},
            "locations": [{"physicalLocation": _location(op.line, config)}],
        }
        for op, rule, said in found
    ]
    driver = {"name": "mpsearch", "version": version("mpsearch"), "rules": rules}
    schema = "https://json.schemastore.org/sarif-2.1.0.json"
    runs = [{"tool": {"driver": driver}, "results": results}]
    return json.dumps({"$schema": schema, "version": "2.1.0", "runs": runs}, indent=2) + "\n"


def _location(line: str, config: str) -> dict[str, Any]:
    file, _, number = line.rpartition(":")
    if not file or not number.isdigit():
        return {"artifactLocation": {"uri": quote(config)}}
    with contextlib.suppress(ValueError):  # it is elsewhere
        file = str(Path(file).relative_to(Path.cwd()))
    uri = quote(file) if not Path(file).is_absolute() else Path(file).as_uri()
    return {"artifactLocation": {"uri": uri}, "region": {"startLine": max(int(number), 1)}}


def _plain(text: str) -> str:
    """A name from a model, as text that no Markdown stands in."""
    return printable(text).translate({ord(c): f"\\{c}" for c in "|<>"}).replace("`", "'")
