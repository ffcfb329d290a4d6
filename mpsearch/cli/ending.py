"""How a command ends: every error in one line and an exit code, nothing temporary left behind."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import click

from ..errors import InfeasibleError, MpsearchError, VerificationError
from ..files import printable
from .early import CALLED, MODELS
from .help import Command
from .process import INTERRUPTED

OK, CHECK_FAILED, BAD_INPUT, INFEASIBLE, DEFECT = 0, 1, 2, 3, 4
#: Exit codes by the status of a result.
EXIT = {
    "met": OK,
    "fp16_suffices": OK,
    "infeasible": INFEASIBLE,
    "interrupted": INTERRUPTED,
    "unwritten": BAD_INPUT,
}


#: Characters of a line: names come from files, and may be of any length.
_LONGEST = 900


class Group(click.Group):
    """Ends every error in one line and its exit code, and leaves nothing temporary behind."""

    command_class = Command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        sys.exit(self._code(*args, **kwargs))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that was named; optimize where a model stands in its place."""
        first = args[0]
        model = ":" in first or Path(first).suffix in MODELS or Path(first).exists()
        named = self.get_command(ctx, first) is not None
        return super().resolve_command(ctx, ["optimize", *args] if model and not named else args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # here, before click makes a failure of it
            ctx.exit(_piped())
        except KeyboardInterrupt:  # here, before click makes lines of its own of it
            ctx.exit(_fail("interrupted", "before anything was found", INTERRUPTED))

    def _code(self, *args: Any, **kwargs: Any) -> int:
        try:
            code = int(super().main(*args, **kwargs) or OK)
            sys.stdout.flush()
            return code
        except SystemExit as error:
            # click ends so where stdout is closed, as by head, while it prints help.
            piped = type(sys.stdout).__name__.endswith("PacifyFlushWrapper")
            return OK if piped else int(error.code or OK)
        except click.NoSuchOption as error:
            called = CALLED.get(error.option_name)
            said = f"There is no option {error.option_name}; it is called {called} here."
            if not called:
                said = error.format_message()
                said += "" if error.possibilities else " --help-all lists all options."
            return _fail("error", said, BAD_INPUT)
        except click.ClickException as error:
            return _fail("error", error.format_message(), BAD_INPUT)
        except InfeasibleError as error:
            return _fail("error", str(error), INFEASIBLE)
        except VerificationError as error:
            return _fail("defect", str(error), DEFECT)
        except MpsearchError as error:
            return _fail("error", str(error), BAD_INPUT)
        except OSError as error:
            if isinstance(error, BrokenPipeError):  # stdout is closed, as by head
                return _piped()
            return _fail("error", f"the system refuses: {error}", BAD_INPUT)
        except Exception as error:
            if os.environ.get("MPSEARCH_TRACEBACK"):
                raise
            said = f"{type(error).__name__}: {error}; MPSEARCH_TRACEBACK=1 shows where. Report it"
            return _fail("defect", said, DEFECT)


def _piped() -> int:
    """What is printed has no reader any more: the rest goes nowhere."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return OK


def _fail(kind: str, message: str, code: int) -> int:
    text = shortened(" ".join(message.split()))
    with contextlib.suppress(OSError):
        click.echo(f"{kind}: {printable(text)}", err=True)
    return code


def shortened(line: str) -> str:
    """A line without its middle where it is longer than anybody reads."""
    if len(line) <= _LONGEST:
        return line
    return f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
