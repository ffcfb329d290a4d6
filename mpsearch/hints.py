"""Options as messages name them: as Python has them, or the shell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .options import Constraints, Conversion, Execution, Limits

_IN_SHELL: ContextVar[bool] = ContextVar("in_shell", default=False)


@contextmanager
def shell() -> Iterator[None]:
    """Name options as the command line has them within the block."""
    before = _IN_SHELL.set(True)
    try:
        yield
    finally:
        _IN_SHELL.reset(before)


def option(name: str, value: str | None = None) -> str:
    """An option by its name in Python, with a value: ``Conversion(rescale="fold")``.

    In the shell ``--rescale fold``. Without a value it is one that is switched on.
    """
    if _IN_SHELL.get():
        return f"--{name.replace('_', '-')}" + ("" if value is None else f" {value}")
    said = f"{name}=True" if value is None else f'{name}="{value}"'
    for group in (Conversion, Constraints, Limits, Execution):
        if name in group.__struct_fields__:
            return f"{group.__name__}({said})"
    return said


def argument(in_shell: str, in_python: str) -> str:
    """An argument by its name, which is another in the shell than in Python."""
    return f"--{in_shell}" if _IN_SHELL.get() else in_python
