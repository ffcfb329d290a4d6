"""A program for another process: constants are pickled by value, and lie there as they do here."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from ..buffers import LINE
from ..program.graph import Constant, Function

_Load = Callable[[], Any]


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self._values: dict[int, tuple[_Load, _Value]] = {}

    def reducer_override(self, found: Any) -> Any:
        if not isinstance(found, Constant):
            return NotImplemented
        # The FP32 and the FP16 form of a constant have one value.
        if id(found.load) not in self._values:
            self._values[id(found.load)] = found.load, _Value(found.load())
        return Constant, (found.name, self._values[id(found.load)][1], found.narrow)


class _Value:
    """What a constant holds."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __call__(self) -> Any:
        return self._value

    def __getstate__(self) -> Any:
        offset = self._value.ctypes.data % LINE if isinstance(self._value, np.ndarray) else 0
        return self._value, offset

    def __setstate__(self, state: Any) -> None:
        value, offset = state
        self._value = _placed(value, offset) if isinstance(value, np.ndarray) else value


def _placed(value: np.ndarray, offset: int) -> np.ndarray:
    """A copy at an address so many bytes beyond a multiple of 64."""
    memory = np.empty(value.nbytes + 2 * LINE, np.uint8)
    start = (offset - memory.ctypes.data) % LINE
    copy = memory[start : start + value.nbytes].view(value.dtype).reshape(value.shape)
    copy[...] = value
    return copy


def pickled(function: Function) -> bytes:
    """A program as bytes."""
    file = io.BytesIO()
    _Pickler(file).dump(function)
    return file.getvalue()


def unpickled(data: bytes) -> Function:
    """The program; only of bytes that :func:`pickled` made."""
    found: Function = pickle.loads(data)
    return found
