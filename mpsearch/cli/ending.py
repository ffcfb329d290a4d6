"""How a command ends: every error in one line and an exit code, nothing temporary left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import click

from ..errors import InfeasibleError, MpsearchError, VerificationError
from ..files import printable

OK, CHECK_FAILED, BAD_INPUT, INFEASIBLE, INTERRUPTED = 0, 1, 2, 3, 130
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
        with _signals():
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


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt as Ctrl-C does, unless they are ignored (nohup)."""
    before: dict[int, Any] = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        mine = threading.current_thread() is threading.main_thread()
        if number is not None and mine and signal.getsignal(number) is signal.SIG_DFL:
            before[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
