"""coremltools, imported without its messages.

At import coremltools logs one line for every framework whose version it was not tested with and
for every native library it lacks off a Mac; at conversion it draws its own progress bars. None of
that tells an mpsearch user anything.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator

_quiet = False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the warnings, log lines and progress bars of coremltools and torch within the block.

    Within another such block it costs nothing: put one around a loop.
    """
    global _quiet
    if _quiet:
        yield
        return
    loggers = [logging.getLogger(name) for name in ("coremltools", "torch")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            with _bars_off():
                _quiet = True
                yield
    finally:
        _quiet = False
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _bars_off() -> Iterator[None]:
    """Replace tqdm in coremltools' modules by plain iteration."""
    saved = []
    for name, module in list(sys.modules.items()):
        if name.startswith("coremltools.converters"):
            for attribute in ("tqdm", "_tqdm"):
                original = vars(module).get(attribute)
                if callable(original):
                    saved.append((module, attribute, original))
                    setattr(module, attribute, _plain_iteration)
    try:
        yield
    finally:
        for module, attribute, original in saved:
            setattr(module, attribute, original)


def _plain_iteration(iterable, *_args, **_kwargs):  # type: ignore[no-untyped-def]
    return iterable


with quiet():
    # Off a Mac the bindings to Core ML are missing, which coremltools logs at WARNING.
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    import coremltools as ct

__all__ = ["ct", "quiet"]
