"""The command line."""

from __future__ import annotations

from collections.abc import Sequence

from .process import clean_environment, listen, open_streams, skip_frontends


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, the one that was typed by default, and exit."""
    open_streams()
    clean_environment()
    skip_frontends()
    listen()
    from .commands import main as command

    command(None if arguments is None else list(arguments))


__all__ = ["main"]
