"""The command line."""

from __future__ import annotations

from collections.abc import Sequence

from .interrupts import listen


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, the one that was typed by default, and exit."""
    listen()
    from .commands import main as command

    command(None if arguments is None else list(arguments))


__all__ = ["main"]
