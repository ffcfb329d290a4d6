"""The command line."""

from __future__ import annotations

from collections.abc import Sequence

from .process import clean_environment, listen, open_streams


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, the one that was typed by default, and exit."""
    open_streams()
    clean_environment()
    listen()
    from .commands import main as command

    command(None if arguments is None else list(arguments))


__all__ = ["main"]
