"""Convolutions as sums of products, tap by tap, that are rounded after every step.

A convolution adds ``x[c, q + j] * weight[o, c, j]`` over channels c and taps j. A transposed one
with stride s has s phases along an axis: a result at ``q * s + r`` sees the taps j whose distance
``j * dilation`` leaves the rest r, and so is a convolution of its own with few taps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .sums import products, rows_at_once, summed

#: Windows of one channel are copied where they have no more elements; else they are seen in turn.
_COPIED = 1 << 20


def convolved(
    x: Tensor,
    weight: Tensor,
    strides: Sequence[int],
    dilations: Sequence[int],
    groups: int,
    order: str,
    fused: bool,
) -> Tensor:
    """A convolution without padding and bias.

    ``x`` is (N, C, ...), ``weight`` (O, C / groups, ...), both in FP32 storage; the result as well.
    """
    rank, kernel = len(strides), weight.shape[2:]
    windows = x.half()
    for axis in range(rank):
        span = (kernel[axis] - 1) * dilations[axis] + 1
        windows = windows.unfold(2 + axis, span, strides[axis])[..., :: dilations[axis]]
    taps = weight.half().reshape(groups, -1, weight.shape[1], *kernel)
    taps = taps.movedim(2, 0).movedim(tuple(range(3, 3 + rank)), tuple(range(1, 1 + rank)))
    out = _swept(windows, taps, groups, order, fused)
    return out.flatten(1, 2).float()


def conv_transposed(
    x: Tensor,
    weight: Tensor,
    strides: Sequence[int],
    dilations: Sequence[int],
    groups: int,
    order: str,
    fused: bool,
) -> Tensor:
    """A transposed convolution without padding and bias.

    ``x`` is (N, C, ...), ``weight`` (C, O / groups, ...), both in FP32 storage; the result as well,
    of size ``(size - 1) * stride + dilation * (kernel - 1) + 1`` along each axis.
    """
    rank, kernel = len(strides), weight.shape[2:]
    axes = list(zip(x.shape[2:], kernel, strides, dilations, strict=True))
    sizes = [(n - 1) * s + d * (k - 1) + 1 for n, k, s, d in axes]
    out = x.new_zeros(x.shape[0], groups, weight.shape[1], *sizes)
    weight = weight.half().reshape(groups, -1, *weight.shape[1:]).transpose(0, 1)
    furthest = [d * (k - 1) // s for _, k, s, d in axes]
    windows = F.pad(x.half(), [n for far in reversed(furthest) for n in (far, far)])
    for axis in range(rank):
        windows = windows.unfold(2 + axis, furthest[axis] + 1, 1)
    for chosen in product(*(_phases(k, s, d).items() for _, k, s, d in axes)):
        seen, taps = windows, weight
        for axis, (distances, phases) in enumerate(chosen):
            _, _, s, d = axes[axis]
            # From the furthest tap to the nearest, as their inputs follow each other.
            places = torch.tensor([furthest[axis] - m for m in distances])
            seen = seen.index_select(2 + rank + axis, places)
            indices = torch.tensor([[(m * s + r) // d for r in phases] for m in distances])
            taps = taps.index_select(3 + axis, indices.flatten()).unflatten(3 + axis, indices.shape)
            taps = taps.movedim(4 + axis, -1)  # phases go last
        taps = taps.movedim(tuple(range(3, 3 + rank)), tuple(range(1, 1 + rank)))
        part = _swept(seen, taps, groups, order, fused).float()
        for which in product(*(range(len(phases)) for _, phases in chosen)):
            at = [
                slice(phases[i], None, s)
                for (_, phases), i, s in zip(chosen, which, strides, strict=True)
            ]
            target = out[_last(at)]
            found = part.movedim(tuple(range(3, 3 + rank)), tuple(range(rank)))[which]
            target.copy_(found[_last([slice(n) for n in target.shape[3:]])])
    return out.flatten(1, 2)


def _last(of: Sequence[slice]) -> Any:
    """An index into the last axes."""
    return (..., *of)


def _phases(kernel: int, stride: int, dilation: int) -> dict[tuple[int, ...], list[int]]:
    """The phases of an axis by the distances, in inputs, of the taps that they see."""
    found: dict[tuple[int, ...], list[int]] = {}
    for phase in range(stride):
        at = [j * dilation - phase for j in reversed(range(kernel))]
        distances = tuple(n // stride for n in at if n % stride == 0)
        if distances:
            found.setdefault(distances, []).append(phase)
    return found


def _swept(
    windows: Tensor,
    taps: Tensor,
    groups: int,
    order: str,
    fused: bool,
) -> Tensor:
    """The sums over channels and taps.

    Parameters
    ----------
    windows
        (N, C, places ..., kernel ...).
    taps
        (C / groups, kernel ..., groups, O / groups, phases ...).

    Returns
    -------
    Tensor
        (N, groups, O / groups, phases ..., places ...), in FP16.
    """
    rank = (windows.dim() - 2) // 2
    windows = windows.unflatten(1, (groups, -1))
    kernel, places = range(3 + rank, 3 + 2 * rank), range(3, 3 + rank)
    windows = windows.permute(2, *kernel, 0, 1, *places)
    phases = taps.dim() - 3 - rank
    windows = windows[(slice(None),) * (3 + rank) + (None,) * (1 + phases)]
    taps = taps.unsqueeze(1 + rank)[(...,) + (None,) * rank]
    axis, channels = 3 + rank, taps.shape[3 + rank]
    if channels > math.prod(windows.shape[-rank:]):  # the longer axis last, for long inner loops
        windows, taps, axis = windows.movedim(axis, -1), taps.movedim(axis, -1), taps.dim() - 1
    width = math.prod(windows.shape[1 + rank :]) * math.prod(taps.shape[3 + rank :]) // channels
    rows = rows_at_once(width)
    parts = [
        summed(_terms(windows, taps.narrow(axis, o, min(rows, channels - o)), rank, fused), order)
        for o in range(0, channels, rows)
    ]
    axis -= 1 + rank
    return torch.cat(parts, axis).movedim(axis, 2)


def _terms(windows: Tensor, taps: Tensor, rank: int, fused: bool) -> Iterator[Tensor]:
    """The products, channel by channel and tap by tap."""
    size = math.prod(windows.shape[1:])
    if size > _COPIED:
        for channel in range(len(windows)):
            for tap in product(*map(range, windows.shape[1 : 1 + rank])):
                a, b = (side[channel][tap][None].contiguous() for side in (taps, windows))
                yield from products(a, b, fused)
        return
    some = rows_at_once(size)
    for start in range(0, len(windows), some):
        block = slice(start, start + some)
        a, b = (side[block].flatten(0, rank).contiguous() for side in (taps, windows))
        yield from products(a, b, fused)
