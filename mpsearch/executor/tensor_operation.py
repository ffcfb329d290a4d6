"""MIL ops of the family ``tensor_operation``. Each function is the op it is named after."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..memory import MOST_ELEMENTS
from .padding import zero_pad


def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True).to(torch.int32)


def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    m = torch.arange(x.shape[-2], device=x.device).unsqueeze(1)
    n = torch.arange(x.shape[-1], device=x.device).unsqueeze(0)
    keep = torch.ones_like(m + n, dtype=torch.bool)
    if lower >= 0:
        keep &= (m - n) <= lower
    if upper >= 0:
        keep &= (n - m) <= upper
    return torch.where(keep, x, torch.zeros_like(x))


def classify(probabilities: Tensor, classes: list[str]) -> tuple[str, dict[str, float]]:
    """The likeliest class and the probability of every class."""
    values = probabilities.reshape(-1).tolist()
    best = max(range(len(values)), key=values.__getitem__)
    return classes[best], dict(zip(classes, values, strict=True))


def concat(values: list[Tensor], axis: int, interleave: bool = False) -> Tensor:
    values = [v.reshape(1) if v.dim() == 0 else v for v in values]
    if not interleave:
        return torch.cat(values, dim=axis)
    axis = axis % values[0].dim()
    return torch.stack(values, dim=axis + 1).flatten(axis, axis + 1)


def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    x = x.flip(axis) if reverse else x
    out = torch.cumsum(x, dim=axis).to(x.dtype)
    if exclusive:
        first = torch.zeros_like(out.narrow(axis, 0, 1))
        out = torch.cat([first, out.narrow(axis, 0, out.shape[axis] - 1)], dim=axis)
    return out.flip(axis) if reverse else out


def _affordable(elements: float) -> None:
    """A few numbers in a program must not take all of the memory."""
    if elements > MOST_ELEMENTS:
        raise ValueError(f"it makes {elements:,.0f} elements, expected at most {MOST_ELEMENTS:,}")


def fill(shape: list[int], value: Tensor | None = None) -> Tensor:
    _affordable(math.prod(shape))
    if value is None:
        return torch.zeros(shape)
    return torch.full(shape, value.item(), dtype=value.dtype, device=value.device)


def fill_like(ref_tensor: Tensor, value: Tensor | None = None) -> Tensor:
    return fill(list(ref_tensor.shape), value)


def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    axis = axis + x.dim() if axis < 0 else axis
    rows = 1
    for size in x.shape[:axis]:
        rows *= size
    return x.reshape(rows, -1)


def identity(x: Tensor) -> Tensor:
    return x


def non_maximum_suppression(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_boxes: int,
    score_threshold: float | None = None,
    per_class_suppression: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Greedy non-maximum suppression of boxes (n, B, 4) given as (x, y, width, height).

    Unfilled places hold zero boxes, zero scores and index -1.
    """
    n, _, classes = scores.shape
    out_boxes = boxes.new_zeros(n, max_boxes, 4)
    out_scores = scores.new_zeros(n, max_boxes, classes)
    out_indices = torch.full((n, max_boxes), -1, dtype=torch.int32, device=boxes.device)
    counts = torch.zeros(n, dtype=torch.int32, device=boxes.device)
    for i in range(n):
        centre, size = boxes[i, :, :2], boxes[i, :, 2:]
        low, high = centre - size / 2, centre + size / 2
        area = size.prod(-1)
        extent = torch.minimum(high[:, None], high[None]) - torch.maximum(low[:, None], low[None])
        shared = extent.clamp(min=0).prod(-1)
        iou = shared / (area[:, None] + area[None] - shared)
        best, label = scores[i].max(-1)
        kept: list[int] = []
        for j in torch.argsort(best, descending=True, stable=True).tolist():
            if len(kept) == max_boxes:
                break
            if score_threshold is not None and best[j] < score_threshold:
                break
            rivals = [k for k in kept if not per_class_suppression or label[k] == label[j]]
            if all(iou[j, k] <= iou_threshold for k in rivals):
                kept.append(j)
        counts[i] = len(kept)
        if kept:
            out_boxes[i, : len(kept)] = boxes[i, kept]
            out_scores[i, : len(kept)] = scores[i, kept]
            out_indices[i, : len(kept)] = torch.tensor(kept, dtype=torch.int32)
    return out_boxes, out_scores, out_indices, counts


def non_zero(x: Tensor) -> Tensor:
    return torch.nonzero(x).to(torch.int32)


def one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: Tensor | None = None,
    off_value: Tensor | None = None,
) -> Tensor:
    one = torch.tensor(1, dtype=torch.int32, device=indices.device)
    on = one if on_value is None else on_value
    off = torch.zeros_like(one) if off_value is None else off_value
    axis = axis + indices.dim() + 1 if axis < 0 else axis
    classes = torch.arange(one_hot_vector_size, device=indices.device)
    shape = [1] * (indices.dim() + 1)
    shape[axis] = -1
    return torch.where(indices.unsqueeze(axis) == classes.reshape(shape), on, off)


def pad(
    x: Tensor, pad: list[int], mode: str = "constant", constant_val: float | bool | int = 0.0
) -> Tensor:
    """Pad the last ``len(pad) / 2`` axes, the earliest of them first."""
    pads = [(pad[2 * i], pad[2 * i + 1]) for i in range(len(pad) // 2)]
    if mode == "constant":
        return zero_pad(x, pads, constant_val)
    for axis, (before, after) in enumerate(pads, start=x.dim() - len(pads)):
        if not before and not after:
            continue
        size = x.shape[axis]
        index = torch.arange(-before, size + after, device=x.device)
        if mode == "reflect" and size > 1:
            index = (index.remainder(2 * (size - 1)) - (size - 1)).abs()
            index = size - 1 - index
        x = x.index_select(axis, index.clamp(0, size - 1))
    return x


def range_1d(end: Tensor, start: Tensor, step: Tensor) -> Tensor:
    _affordable(abs((end.item() - start.item()) / (step.item() or 1)))
    return torch.arange(
        start.item(), end.item(), step.item(), dtype=start.dtype, device=start.device
    )


def shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


def split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: list[int] | None = None
) -> tuple[Tensor, ...]:
    if split_sizes is None:
        assert num_splits is not None
        split_sizes = [x.shape[axis] // num_splits] * num_splits
    return torch.split(x, split_sizes, dim=axis)


def stack(values: list[Tensor], axis: int) -> Tensor:
    return torch.stack(values, dim=axis)


def tile(x: Tensor, reps: list[int]) -> Tensor:
    _affordable(x.numel() * math.prod(reps))
    return torch.tile(x, reps)


def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, Tensor] | Tensor:
    k = x.shape[axis] if k == -1 else k
    # A stable sort: of equal values the earliest comes first, which torch.topk leaves open.
    values, indices = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    values, indices = values.narrow(axis, 0, k), indices.narrow(axis, 0, k).to(torch.int32)
    return (values, indices) if return_indices else values
