"""Pictures of what people see: the terminal at three widths, the report, the docs.

python docs/pictures.py FOLDER

Needs chromium and rich. The page of the docs is there after ``make docs``.
"""

from __future__ import annotations

import io
import os
import pty
import shlex
import struct
import subprocess
import sys
import tempfile
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
COMMAND = (
    "mpsearch optimize examples.complex_division:build "
    "--inputs examples.complex_division:samples --budget 1e-2 -o out"
)
WIDTHS = (60, 80, 120)


def printed(columns: int, folder: str) -> str:
    """What the command prints on a terminal so wide, colors included."""
    mine, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))
    words = [str(Path(sys.executable).parent / "mpsearch"), *shlex.split(COMMAND)[1:]]
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        words, cwd=folder, env=environment, stdout=theirs, stderr=subprocess.DEVNULL
    ) as process:
        os.close(theirs)
        found = b""
        try:
            while more := os.read(mine, 4096):
                found += more
        except OSError:  # the other end was closed
            pass
    os.close(mine)
    if process.returncode:
        raise RuntimeError(found.decode())
    return found.decode().replace("\r\n", "\n")


def page(text: str, columns: int) -> str:
    """A page that shows what a terminal does."""
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(f"$ {COMMAND}\n{text}"))
    style = "body { background: #fff; margin: 16px; } pre { font: 14px monospace; }"
    return console.export_html(inline_styles=True).replace("<style>", f"<style>{style}")


def picture(source: str, target: Path, width: int, height: int) -> None:
    """A picture of a page."""
    chromium = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    chromium += [f"--window-size={width},{height}", f"--screenshot={target}", source]
    subprocess.run(chromium, check=True, capture_output=True)


def main() -> None:
    out = Path(sys.argv[1]).absolute()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "examples").symlink_to(ROOT / "examples")
        for columns in WIDTHS:
            made = Path(folder) / f"{columns}.html"
            made.write_text(page(printed(columns, folder), columns))
            picture(made.as_uri(), out / f"terminal-{columns}.png", 9 * columns + 40, 900)
        report = Path(folder) / "out" / "report.html"
        picture(report.as_uri(), out / "report.png", 1100, 2400)
    picture((ROOT / "docs" / "_build" / "index.html").as_uri(), out / "docs.png", 1100, 1000)


if __name__ == "__main__":
    main()
