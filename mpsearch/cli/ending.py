"""How a command ends: every error in one line and an exit code, nothing temporary left behind."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from ..errors import InfeasibleError, MpsearchError, VerificationError
from ..files import printable
from .interrupts import INTERRUPTED

OK, CHECK_FAILED, BAD_INPUT, INFEASIBLE = 0, 1, 2, 3
#: Exit codes by the status of a result.
EXIT = {
    "met": OK,
    "fp16_suffices": OK,
    "infeasible": INFEASIBLE,
    "interrupted": INTERRUPTED,
    "unwritten": BAD_INPUT,
}


class Group(click.Group):
    """Ends every error in one line and its exit code, and leaves nothing temporary behind."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        sys.exit(self._code(*args, **kwargs))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # here, before click makes lines of its own of it
            ctx.exit(_fail("interrupted", "before anything was found", INTERRUPTED))

    def _code(self, *args: Any, **kwargs: Any) -> int:
        try:
            return int(super().main(*args, **kwargs) or OK)
        except click.ClickException as error:
            return _fail("error", error.format_message(), BAD_INPUT)
        except InfeasibleError as error:
            return _fail("error", str(error), INFEASIBLE)
        except VerificationError as error:
            return _fail("defect", str(error), BAD_INPUT)
        except MpsearchError as error:
            return _fail("error", str(error), BAD_INPUT)
        except OSError as error:
            if isinstance(error, BrokenPipeError):  # stdout is closed, as by head
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return OK
            return _fail("error", f"the system refuses: {error}", BAD_INPUT)
        except Exception as error:
            if os.environ.get("MPSEARCH_TRACEBACK"):
                raise
            said = f"{type(error).__name__}: {error}; MPSEARCH_TRACEBACK=1 shows where. Report it"
            return _fail("defect", said, BAD_INPUT)


def _fail(kind: str, message: str, code: int) -> int:
    click.echo(f"{kind}: {printable(' '.join(message.split()))}", err=True)
    return code
