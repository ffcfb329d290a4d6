"""The error of outputs, in few numbers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .metrics import Outputs

#: Numbers kept of the error of one output; longer outputs are sketched.
_BUCKETS = 256


class Sketch:
    """Turns outputs into a short vector of their error.

    The vector is the difference from the reference over the reference's norm, for all float
    outputs. Longer outputs are summed into 256 buckets with random signs. This keeps norms and
    sums on average (count sketch: Charikar, Chen and Farach-Colton, 2002).

    Parameters
    ----------
    seed
        For the buckets and signs.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._hashes: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, reference: Outputs, outputs: Outputs) -> np.ndarray | None:
        """The error as float32 values; None where an output is not finite or none is a float."""
        parts = []
        for name, wanted in reference.items():
            if not wanted.is_floating_point():
                continue
            exact = wanted.reshape(-1).double()
            norm = float(torch.linalg.vector_norm(exact)) or 1.0
            error = (outputs[name].reshape(-1).double() - exact) / norm
            if not bool(torch.isfinite(error).all()):
                return None
            parts.append(self._short(error).numpy())
        return np.concatenate(parts).astype(np.float32) if parts else None

    def _short(self, error: Tensor) -> Tensor:
        count = error.numel()
        if count <= _BUCKETS:
            return error
        if count not in self._hashes:
            generator = torch.Generator().manual_seed(self._seed)
            bucket = torch.randint(0, _BUCKETS, (count,), generator=generator)
            sign = torch.randint(0, 2, (count,), generator=generator).double() * 2 - 1
            self._hashes[count] = bucket, sign
        bucket, sign = self._hashes[count]
        return torch.zeros(_BUCKETS, dtype=torch.float64).index_add_(0, bucket, error * sign)
