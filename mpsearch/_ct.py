"""coremltools, imported without its messages.

At import coremltools logs one line for every framework whose version it was not tested with and
for every native library it lacks off a Mac; at conversion it draws its own progress bars. None of
that tells an mpsearch user anything.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the warnings, log lines and progress bars of coremltools and torch within the block."""
    loggers = [logging.getLogger(name) for name in ("coremltools", "torch")]
    levels = [logger.level for logger in loggers]
    # coremltools shows its bars through tqdm, which this variable turns off.
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            with _bars_off():
                yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before


@contextlib.contextmanager
def _bars_off() -> Iterator[None]:
    """tqdm reads TQDM_DISABLE once, at its import: where that is past, patch the bars out."""
    import sys

    module = sys.modules.get("coremltools")
    if module is None:
        yield
        return
    holders = [
        m
        for name, m in list(sys.modules.items())
        if (name.startswith("coremltools.converters") and hasattr(m, "_tqdm"))
        or name == "coremltools.converters.mil.mil.passes.pass_pipeline"
    ]
    saved = []
    for holder in holders:
        for attribute in ("tqdm", "_tqdm"):
            if callable(getattr(holder, attribute, None)):
                saved.append((holder, attribute, getattr(holder, attribute)))
                setattr(holder, attribute, _plain_iteration)
    try:
        yield
    finally:
        for holder, attribute, original in saved:
            setattr(holder, attribute, original)


def _plain_iteration(iterable, *_args, **_kwargs):  # type: ignore[no-untyped-def]
    return iterable


with quiet():
    # Off a Mac the bindings to Core ML are missing, which coremltools logs at WARNING.
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    import coremltools as ct

__all__ = ["ct", "quiet"]
