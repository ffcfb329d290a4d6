"""From batches to items: what counts is one input of the model.

A batch of 32 in which one input fails is not 31/32 right. Where the rows of a sample have nothing
to do with each other, the sample is a batch, and is taken apart into inputs of batch size 1, which
is also what the package then takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .data import Data

Outputs = Mapping[str, Tensor]
Run = Callable[[Mapping[str, Any]], Outputs]

#: By how much, relative to its size, a row may differ when it is run alone: kernels for other
#: batch sizes add in another order.
_TOLERANCE = 1e-4


def items(data: Data, run: Run) -> Data:
    """The data with batches taken apart, or as it is where samples are no batches.

    The first axis is a batch axis where every input has it, and running a row by itself gives what
    it gave among the others.
    """
    sizes = [_rows(sample) for sample in data.samples]
    first = next((place for place, size in enumerate(sizes) if size > 1), None)
    if first is None or not _independent(data.samples[first], sizes[first], run):
        return data
    samples, targets = [], []
    for place, (sample, size) in enumerate(zip(data.samples, sizes, strict=True)):
        samples += [_row(sample, size, row) for row in range(size)]
        if data.targets:
            apart = _targets_of(data.targets[place], size)
            if apart is None:
                return data
            targets += apart
    return replace(data, samples=samples, targets=targets)


def _rows(sample: Mapping[str, Any]) -> int:
    """How many rows a sample may have; 1 where its inputs do not agree."""
    sizes = {len(v) for v in sample.values() if isinstance(v, Tensor) and v.dim()}
    sizes.discard(1)
    return sizes.pop() if len(sizes) == 1 else 1


def _row(sample: Mapping[str, Any], size: int, row: int) -> dict[str, Any]:
    return {
        name: value[row : row + 1]
        if isinstance(value, Tensor) and value.dim() and len(value) == size
        else value
        for name, value in sample.items()
    }


def _independent(sample: Mapping[str, Any], size: int, run: Run) -> bool:
    whole = run(sample)
    if not all(value.dim() and len(value) == size for value in whole.values()):
        return False
    for row in {0, size - 1}:
        try:
            alone = run(_row(sample, size, row))
        except InputError:  # made for this batch size
            return False
        if not all(_same(alone[name], value[row : row + 1]) for name, value in whole.items()):
            return False
    return True


def _same(alone: Tensor, among: Tensor) -> bool:
    if alone.shape != among.shape:
        return False
    a, b = alone.double().nan_to_num(), among.double().nan_to_num()
    size = float(torch.linalg.vector_norm(b))
    return float(torch.linalg.vector_norm(a - b)) <= _TOLERANCE * size


def _targets_of(target: Any, size: int) -> list[Any] | None:
    """The targets of a batch's rows; None where there are not as many."""
    if isinstance(target, Sequence) and not isinstance(target, str) and len(target) == size:
        return list(target)
    if hasattr(target, "shape") and len(target.shape) and len(target) == size:
        return [target[row : row + 1] for row in range(size)]
    return None if size > 1 else [target]
