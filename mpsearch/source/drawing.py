"""Inputs drawn at random, where nobody gives data."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .data import MOST_SAMPLES, Data, bytes_for_samples
from .declared import Spec

#: How many inputs are drawn where nothing is said.
COUNT = 16
#: Ops that hand on the numbers they are given, in other places or types.
_MOVING = frozenset(["cast", "concat", "expand_dims", "identity", "reshape", "select"]) | frozenset(
    ["slice_by_index", "slice_by_size", "split", "squeeze", "stack", "tile", "transpose"]
)
#: Ops that take the numbers for places in their first argument, along an axis.
_LOOKUPS = frozenset(["gather", "gather_along_axis"])


def drawn(
    specs: Mapping[str, Spec],
    names: Sequence[str] | None,
    required: int,
    count: int,
    seed: int,
    missing: Callable[[Sequence[str]], InputError],
) -> Data:
    """Random samples.

    Floats are standard normal, pixels (uint8) are 0 to 255, masks and other integers 0 or 1. A
    length is 1 at least, and at most the longest axis of the other inputs. What names a row of a
    table is drawn anew once the program is known (:func:`within_tables`).

    Parameters
    ----------
    missing
        The error for required inputs whose shapes are not known.

    Raises
    ------
    InputError
        If ``count`` is below 1 or the samples take more than may be kept, or the shape of a
        required input is not known.
    """
    unknown = [k for k in (names or [])[:required] if k not in specs]
    if unknown:
        raise missing(unknown)
    strange = [k for k in specs if names is not None and k not in names]
    if strange:
        raise InputError(
            f"--shape {strange[0]}: the model has no such input; it takes {', '.join(names or [])}"
        )
    if count < 1:
        raise InputError(f"--random {count}: give the number of samples, 1 or more")
    total = count * sum(math.prod(s) * d.itemsize for s, d in specs.values())
    if total > bytes_for_samples() or count > MOST_SAMPLES:
        raise InputError(
            f"--random {count}: such samples take {total:,} bytes; give at most {MOST_SAMPLES:,}, "
            f"and no more than half of what {tempfile.gettempdir()} has free"
        )
    generator = torch.Generator().manual_seed(seed)
    longest = max((max(shape, default=1) for shape, _ in specs.values()), default=1)
    data = Data([], noise=True)
    for _ in range(count):
        sample = {k: _value(k, spec, longest, generator) for k, spec in specs.items()}
        data.samples.append({k: data.spool.keep(v) for k, v in sample.items()})
    return data


def _value(name: str, spec: Spec, longest: int, generator: torch.Generator) -> Tensor:
    shape, dtype = spec
    words = name.lower()
    if dtype is torch.uint8:
        return torch.randint(0, 256, shape, generator=generator).float()
    if "mask" in words:
        mask = torch.randint(0, 2, shape, generator=generator).to(dtype)
        mask[..., :1] = 1  # a mask of nothing leaves nothing to compute with
        return mask
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    if "len" in words and dtype is not torch.bool:
        return torch.randint(1, longest + 1, shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def within_tables(data: Data, function: Any, seed: int) -> Data:
    """Random data whose integers name any row of the tables that they index.

    Parameters
    ----------
    function
        The program's function, whose inputs are the tensors of a sample, in order.
    """
    rows = _table_rows(function)
    if not data.noise or not any(rows):
        return data
    generator = torch.Generator().manual_seed(seed)
    samples: list[dict[str, Any]] = []
    for sample in data.samples:
        tensors = [name for name, value in sample.items() if isinstance(value, Tensor)]
        new = dict(sample)
        for name, count in zip(tensors, rows, strict=False):
            if count is not None:
                old = sample[name]
                new[name] = torch.randint(0, count, old.shape, generator=generator).to(old.dtype)
        samples.append({name: data.spool.keep(value) for name, value in new.items()})
    return replace(data, samples=samples)


def _table_rows(function: Any) -> list[int | None]:
    """Of each input, how many rows the smallest table has that it indexes; None for no table."""
    return [_smallest_table(var) for var in function.inputs.values()]


def _smallest_table(var: Any) -> int | None:
    found: list[int] = []
    seen: set[Any] = set()
    left = [var]
    while left:
        at = left.pop()
        for op in at.child_ops:
            if op in seen:
                continue
            seen.add(op)
            if op.op_type in _LOOKUPS and op.inputs["indices"] is at and op.inputs["x"] is not at:
                rows = op.inputs["x"].shape[int(op.inputs["axis"].val)]
                found += [int(rows)] if isinstance(rows, int) else []
            elif op.op_type in _MOVING and op.inputs.get("cond") is not at:
                left += op.outputs
    return min(found, default=None)
