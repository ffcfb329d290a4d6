"""Runs commands as a user would: in processes of their own, made by fork so that hundreds are
affordable. What a process prints is taken from its file descriptors, C++ libraries included."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

# Everything that a command would import, once.
from mpsearch.cli import main


@dataclass(frozen=True)
class Outcome:
    """What became of a process: exit code (negative: the signal that ended it), what it printed,
    seconds, the largest resident memory in bytes, and what it left in its TMPDIR."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    peak: int
    litter: list[str]


def run(
    argv: Sequence[object],
    cwd: Path,
    tmp: Path,
    limit: float = 120.0,
    while_running: Callable[[int], None] | None = None,
) -> Outcome:
    """``mpsearch`` with ``argv`` in ``cwd``, with ``tmp`` as its TMPDIR; killed after ``limit`` s.

    ``while_running`` is called with the process id, to send it signals.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            _child([str(a) for a in argv], cwd, tmp, out.fileno(), err.fileno())
        if while_running is not None:
            while_running(child)
        status = 0
        usage = resource.getrusage(resource.RUSAGE_SELF)
        while True:
            done, status, usage = os.wait4(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() - started > limit:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.005)
        seconds = time.monotonic() - started
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "replace"))
    code = os.waitstatus_to_exitcode(status)
    litter = sorted(p.name for p in tmp.iterdir())
    return Outcome(code, texts[0], texts[1], seconds, usage.ru_maxrss * 1024, litter)


def _child(argv: list[str], cwd: Path, tmp: Path, out: int, err: int) -> None:
    """Never returns."""
    code = 99
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdin, sys.stdout, sys.stderr = (open(n, m) for n, m in ((0, "r"), (1, "w"), (2, "w")))  # noqa: SIM115
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ["TMPDIR"] = tempfile.tempdir = str(tmp)
        os.chdir(cwd)
        torch.set_num_threads(1)
        main(argv)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file, folder and link below a folder: size and time of change."""
    found = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        plain = not path.is_dir() or path.is_symlink()
        found[str(path.relative_to(folder))] = (stat.st_size, stat.st_mtime_ns) if plain else (0, 0)
    return found


def one_line(outcome: Outcome) -> str | None:
    """What is wrong with how a bad input was refused; None where nothing is."""
    lines = outcome.stderr.splitlines()
    if outcome.code != 2:
        return f"exit code {outcome.code}: {outcome.stderr[-500:]}"
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return f"{len(lines)} lines on stderr: {outcome.stderr[-500:]}"
    if outcome.stdout:
        return f"stdout: {outcome.stdout[:200]}"
    if outcome.litter:
        return f"left in TMPDIR: {outcome.litter}"
    return None


def corrupted(body: bytes, generator: random.Random) -> bytes:
    """A file's content with one of the things that happen to files."""
    if not body:
        return b"\0"
    kind = generator.randrange(6)
    at = generator.randrange(len(body))
    if kind == 0:
        return body[:at]
    if kind == 1:  # single bits
        out = bytearray(body)
        for _ in range(generator.choice([1, 3, 20])):
            out[generator.randrange(len(out))] ^= 1 << generator.randrange(8)
        return bytes(out)
    if kind == 2:  # a run of zeros or of noise
        size = min(generator.choice([1, 8, 64, 512]), len(body) - at)
        filler = bytes(size) if generator.random() < 0.5 else generator.randbytes(size)
        return body[:at] + filler + body[at + size :]
    if kind == 3:  # a part twice
        return body[:at] + body[at : at + 64] + body[at:]
    if kind == 4:  # a part missing
        return body[:at] + body[at + generator.choice([1, 4, 100]) :]
    # a number made large
    return body[:at] + b"\xff" * min(8, len(body) - at) + body[at + 8 :]
