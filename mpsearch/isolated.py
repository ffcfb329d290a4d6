"""Work on files that may be hostile: first in a child process with limits, then here.

Parsers of torch and coremltools can be made to crash, to loop, or to ask for all memory, before
any Python code could look at what they read. So a file is opened in a child process first, which
is given so much processor time and memory as its size explains; only a file that it opened well is
opened in this process, where nothing that the file does on the way stays: no text, no random state
and no mode of torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import InputError, MpsearchError
from .files import first_line
from .forking import become_helper
from .stdout import STDERR, STDOUT, nothing_printed

#: What a file's size explains: bytes of code parsed, and of other data read, in a second; and
#: how many times its size the memory is that its parsers take.
_CODE_RATE, _DATA_RATE, _COPIES = 1 << 20, 50 << 20, 4
#: Wall time allowed beside processor time: a process that waits uses none.
_WAITING = 30.0


@dataclass(frozen=True)
class LoadLimits:
    """What opening a file may take, beyond what its size explains.

    Attributes
    ----------
    seconds
        Of processor time.
    gib
        Of memory, in GiB.
    """

    seconds: float = 5.0
    gib: float = 1.0


def tried(
    work: Callable[..., None],
    arguments: Sequence[Any],
    file: Path,
    limits: LoadLimits = LoadLimits(),
    code: int = 0,
) -> None:
    """Run ``work(*arguments)`` in a child process with limits.

    Parameters
    ----------
    work
        A function at the top of a module; what it raises of mpsearch's own errors is raised here.
    arguments
        The path of what is opened, then texts, numbers and truth values.
    file
        What is opened, for messages and for its size.
    code
        How many of its bytes are program text, which takes longer than data does.

    Raises
    ------
    InputError
        If the child fails, crashes, or needs more than ``limits`` allow.
    """
    size = _size(file)
    seconds = limits.seconds + code / _CODE_RATE + size / _DATA_RATE
    memory = int(limits.gib * (1 << 30)) + _COPIES * size
    # On macOS what a fork of a process may call is not said, and some of it ends the process. A
    # daemonic process may not fork by multiprocessing.
    forks = sys.platform == "linux" and not multiprocessing.current_process().daemon
    child = _forked if forks else _spawned
    said, status = child(work, arguments, math.ceil(seconds), memory)
    if said is None:
        raise InputError(f"{file} is not read: {_why(status, seconds, memory)}")
    if said:
        raise InputError(said)


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        if path.is_dir():
            return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        return path.stat().st_size
    return 0


def _why(code: int | None, seconds: float, memory: int) -> str:
    if code is None or code == -signal.SIGXCPU or code == -signal.SIGKILL:
        return (
            f"opening it takes more than {seconds:.0f} s, which its size does not explain; raise "
            "--load-seconds if you trust it (in Python, load it yourself and give the model)"
        )
    if code == _NO_MEMORY:
        return (
            f"opening it takes more than {memory / (1 << 30):.1f} GiB, which its size does not "
            "explain; raise --load-gib if you trust it (in Python, load it yourself)"
        )
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"what reads it crashed ({name}); it is damaged, or made to do that"


_NO_MEMORY = 98


def _report(work: Callable[..., None], arguments: Sequence[Any], seconds: int, memory: int) -> Any:
    """What to say of the work: nothing if it went well, or that memory was short."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    spent = math.ceil(sum(os.times()[:2]))  # a new interpreter has loaded torch
    resource.setrlimit(resource.RLIMIT_CPU, (spent + seconds, spent + seconds + 1))
    if sys.platform == "linux":  # elsewhere the limit is not kept
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        with contained():
            work(*arguments)
        return ""
    except MpsearchError as error:
        return str(error)
    except MemoryError:
        return _NO_MEMORY
    except BaseException as error:
        text = first_line(error)
        if "alloc" in text.lower() or "memory" in text.lower():
            return _NO_MEMORY
        return f"{arguments[0]} cannot be read: {text}"


def _forked(
    work: Callable[..., None], arguments: Sequence[Any], seconds: int, memory: int
) -> tuple[str | None, int | None]:
    context: Any = multiprocessing.get_context("fork")
    pipe, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_child, args=(theirs, pipe, work, arguments, seconds, memory), daemon=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        process.start()
    theirs.close()
    try:
        said = None
        if pipe.poll(_WAITING + 4 * seconds):
            with contextlib.suppress(EOFError, OSError):
                said = pipe.recv()
            process.join(_WAITING)
        code = process.exitcode
    finally:
        process.kill()
        process.join()
        pipe.close()
    return (said, code) if not isinstance(said, int) else (None, said)


def _child(
    pipe: Connection,
    parents: Connection,
    work: Callable[..., None],
    arguments: Sequence[Any],
    seconds: int,
    memory: int,
) -> None:
    become_helper(parents)
    said = _report(work, arguments, seconds, memory)
    with contextlib.suppress(OSError):
        pipe.send(said)
    os._exit(0)


def _spawned(
    work: Callable[..., None], arguments: Sequence[Any], seconds: int, memory: int
) -> tuple[str | None, int | None]:
    """As :func:`_forked`, in a new interpreter; loading torch there takes some seconds."""
    asked = json.dumps([work.__module__, work.__qualname__, list(arguments), seconds, memory])
    code = f"from {__name__} import answer; answer()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=asked,
            capture_output=True,
            text=True,
            timeout=_WAITING + 4 * seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, None
    if done.returncode:
        return None, done.returncode
    said = json.loads(done.stdout)
    return (None, said) if isinstance(said, int) else (said, 0)


def answer() -> None:
    """The other side of :func:`_spawned`."""
    module, name, arguments, seconds, memory = json.load(sys.stdin)
    work = getattr(import_module(module), name)
    said = _report(work, arguments, seconds, memory)
    print(json.dumps(said), flush=True)
    os._exit(0)


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Keep what runs within from the terminal, and from the state of this process.

    Text on stdout and stderr goes nowhere, warnings as well. It is the process's stdout that is
    turned away, for all threads: put it around short calls.
    """
    with kept_state(), nothing_printed(STDOUT, STDERR), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def kept_state() -> Iterator[None]:
    """Random states of torch, numpy and Python, and torch's modes, are as before at the end."""
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        if torch.are_deterministic_algorithms_enabled() != strict:  # to set it loads the compiler
            torch.use_deterministic_algorithms(strict)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
