"""Tensors that need not fit the memory: what is beyond a limit lies in files that are mapped."""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Any

import torch
from torch import Tensor

from .buffers import LINE, empty
from .errors import InputError

#: Bytes that stay in memory: more saves nothing where there is room, since the system keeps the
#: pages of a file in memory as well.
_IN_MEMORY = 512 << 20
#: Bytes of the first file, and of any but for a tensor that is larger: each twice the one before,
#: since a process may have only so many open.
_FIRST, _MOST = 64 << 20, 1 << 30
_ZEROS = bytes(1 << 20)


class Spool:
    """Keeps tensors, those beyond half a GiB in files of the temporary folder.

    The files have no names: they end with the tensors, however the process ends. The system brings
    their pages in when they are read, and drops them where memory is wanted.
    """

    def __init__(self) -> None:
        self._left = _IN_MEMORY
        self._block = empty(0, torch.uint8)
        self._used, self._next = 0, _FIRST

    def keep(self, value: Any) -> Any:
        """A tensor in memory or, beyond the limit, its copy in a file; other values as they are.

        Raises
        ------
        InputError
            If the temporary folder has no room for it.
        """
        if not isinstance(value, Tensor):
            return value
        size = value.nbytes
        if size <= self._left:
            self._left -= size
            # What a loader's worker process shares holds a file open, and there may be few.
            # Gradients are taken through samples, and not through tensors of inference mode.
            return value.clone() if value.is_shared() or value.is_inference() else value
        start = -(-self._used // LINE) * LINE
        with torch.inference_mode(False):  # gradients are taken through samples
            if start + size > len(self._block):
                self._block, start = _mapped(max(size, self._next)), 0
                self._next = min(2 * self._next, _MOST)
            self._used = start + size
            place = self._block[start : self._used].view(value.dtype)
            strides = torch.empty_like(value, device="meta").stride()  # its order of axes
            return place.as_strided(value.shape, strides).copy_(value)


def _mapped(size: int) -> Tensor:
    """Bytes of a file without a name. They are written first: a full disk shows here, as an error,
    and not where a mapped page is touched, which ends the process."""
    try:
        with tempfile.TemporaryFile(buffering=0) as file:
            left = size
            while left:
                left -= file.write(_ZEROS[:left])
            return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)
    except OSError as error:
        raise InputError(
            f"samples, and what the model gives for them, take more than fits the memory, and "
            f"{tempfile.gettempdir()} does not take them ({os.strerror(error.errno or 0)}); give "
            "fewer, or set TMPDIR to a folder with room"
        ) from error
