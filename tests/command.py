"""The command line in this process."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner

from mpsearch.cli.commands import main


def run(*arguments: object, expect: int | None = 0) -> Any:
    """Run ``mpsearch`` with ``arguments``; ``expect`` is the exit code, None where any will do."""
    outcome = CliRunner().invoke(main, [str(a) for a in arguments])
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    assert expect is None or outcome.exit_code == expect, outcome.output
    return outcome
