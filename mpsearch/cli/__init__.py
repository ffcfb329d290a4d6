"""The command line."""

from .interrupts import listen


def main() -> None:
    """Run the command that was typed, and exit."""
    listen()
    from .commands import main as command

    command()


__all__ = ["main"]
