"""Code that the user names or hands over: importing it, and what becomes of its errors."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .ending import Stop
from .errors import InputError, MpsearchError
from .files import first_line


def reason(error: BaseException) -> str:
    """What an error says in a line, with its type where the text alone says little."""
    text = str(error)
    # Of a DataLoader's worker process, or of TorchScript: the last line is the error.
    if "Original Traceback" in text or "Traceback of TorchScript" in text:
        text = text.strip().splitlines()[-1]
    text = " ".join(text.split())
    text = (text[:300] + " ...") if len(text) > 300 else text
    if isinstance(error, (RuntimeError, ValueError, TypeError, OSError)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Turn whatever the user's code raises into one line; what ends the run goes through.

    ``sys.exit`` in a factory or a metric is an error as any other. The working directory is as
    before at the end: relative paths were meant from there.

    Raises
    ------
    InputError
        In the place of any other exception: "``what`` failed: ...".
    """
    here = os.getcwd()
    try:
        yield
    except (KeyboardInterrupt, MpsearchError, Stop):
        raise
    except BaseException as error:
        raise InputError(f"{what} failed: {reason(error)}") from error
    finally:
        os.chdir(here)


def import_from_here() -> None:
    """Let modules be imported from the working directory, for code that the user has asked for.

    Only then: a folder with somebody's files in it must not come before the libraries that mpsearch
    itself imports.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def import_callable(path: str, what: str) -> Callable[..., Any]:
    """The callable that ``package.module:name`` names, from where the user stands as well.

    Raises
    ------
    InputError
        If the module cannot be imported or has no such callable.
    """
    module_name, _, attribute = path.partition(":")
    import_from_here()
    here = os.getcwd()
    try:
        value: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"{what} {path!r}: cannot import {module_name!r} ({first_line(error)}); run where it "
            "can be imported, or set PYTHONPATH"
        ) from error
    except (KeyboardInterrupt, MpsearchError):
        raise
    except BaseException as error:
        raise InputError(f"{what} {path!r}: importing it failed: {reason(error)}") from error
    finally:
        os.chdir(here)
    with guarded(f"{what} {path!r}: looking up {attribute!r}"):
        for part in attribute.split("."):
            value = getattr(value, part, None)
    if not callable(value):
        raise InputError(f"{what} {path!r}: {module_name!r} has no callable {attribute!r}")
    result: Callable[..., Any] = value
    return result
