"""MIL ops of the family ``tensor_transformation``. Each function is the op it is named after."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def batch_to_space(x: Tensor, block_shape: list[int], crops: list[list[int]]) -> Tensor:
    bh, bw = block_shape
    b, c, h, w = x.shape
    n = b // (bh * bw)
    out = x.reshape(bh, bw, n, c, h, w).permute(2, 3, 4, 0, 5, 1).reshape(n, c, h * bh, w * bw)
    (top, bottom), (left, right) = crops
    return out[:, :, top : h * bh - bottom, left : w * bw - right]


def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    n, c, h, w = x.shape
    b = block_size
    out = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    return out.reshape(n, c // (b * b), h * b, w * b)


def expand_dims(x: Tensor, axes: list[int]) -> Tensor:
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    return F.pixel_shuffle(x, upscale_factor)


def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    return F.pixel_unshuffle(x, downscale_factor)


def reshape(x: Tensor, shape: list[int]) -> Tensor:
    """-1 is inferred; 0 copies a size of ``x``: of the same axis, or, where the ranks differ
    (iOS17), of the same axis counted from the end, 1 where ``x`` has none."""
    if 0 in shape and x.numel():
        shift = x.dim() - len(shape)
        sizes = [x.shape[i + shift] if i + shift >= 0 else 1 for i in range(len(shape))]
        shape = [s if s else n for s, n in zip(shape, sizes, strict=True)]
    return x.reshape(shape)


def reshape_like(
    x: Tensor,
    ref_tensors: list[Tensor],
    begins: list[int],
    ends: list[int],
    end_masks: list[bool],
) -> Tensor:
    shape: list[int] = []
    for ref, begin, end, mask in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape.extend(ref.shape[begin:] if mask else ref.shape[begin:end])
    return x.reshape(shape)


def reverse(x: Tensor, axes: list[int] | None = None) -> Tensor:
    return torch.flip(x, list(range(x.dim())) if axes is None else axes)


def reverse_sequence(
    x: Tensor, lengths: list[int], seq_axis: int = 0, batch_axis: int = 0
) -> Tensor:
    seq_axis, batch_axis = seq_axis % x.dim(), batch_axis % x.dim()
    rows = []
    for row, length in zip(x.unbind(batch_axis), lengths, strict=True):
        axis = seq_axis - (batch_axis < seq_axis)
        head = row.narrow(axis, 0, length).flip(axis)
        rows.append(torch.cat([head, row.narrow(axis, length, row.shape[axis] - length)], axis))
    return torch.stack(rows, batch_axis)


def _ranges(
    shape: torch.Size,
    begin: list[int],
    end: list[int],
    stride: list[int] | None,
    begin_mask: list[bool] | None,
    end_mask: list[bool] | None,
    squeeze_mask: list[bool] | None,
) -> list[range]:
    """The indices that slice_by_index takes on each axis, in numpy's slice semantics."""
    out = []
    for d, size in enumerate(shape):
        step = 1 if stride is None else stride[d]
        if squeeze_mask and squeeze_mask[d]:
            masked = begin_mask is not None and begin_mask[d]
            at = 0 if masked else begin[d]
            at = at % size if size else 0
            out.append(range(at, at + 1))
            continue
        start = None if begin_mask and begin_mask[d] else begin[d]
        stop = None if end_mask and end_mask[d] else end[d]
        out.append(range(*slice(start, stop, step).indices(size)))
    return out


def _take(x: Tensor, axis: int, r: range) -> Tensor:
    if r.step == 1:
        return x.narrow(axis, r.start if len(r) else 0, len(r))
    if r.step > 0:
        index = [slice(None)] * axis + [slice(r.start, r.stop, r.step)]
        return x[tuple(index)]
    return x.index_select(axis, torch.tensor(list(r), dtype=torch.long, device=x.device))


def slice_by_index(
    x: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    ranges = _ranges(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    for axis, r in enumerate(ranges):
        if r != range(x.shape[axis]):
            x = _take(x, axis, r)
    for axis in range(x.dim() - 1, -1, -1):
        if squeeze_mask and squeeze_mask[axis]:
            x = x.squeeze(axis)
    return x


def slice_by_size(x: Tensor, begin: list[int], size: list[int]) -> Tensor:
    for axis, (start, length) in enumerate(zip(begin, size, strict=True)):
        start = start + x.shape[axis] if start < 0 else start
        x = x.narrow(axis, start, x.shape[axis] - start if length == -1 else length)
    return x


def slice_update(
    x: Tensor,
    update: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    ranges = _ranges(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    index = torch.meshgrid(
        *(torch.tensor(list(r), dtype=torch.long, device=x.device) for r in ranges), indexing="ij"
    )
    out = x.clone()
    out[index] = update.reshape(index[0].shape).to(x.dtype) if index else update
    return out


def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    axis = axis % x.dim()
    return x.unfold(axis, size, stride).movedim(-1, axis + 1)


def space_to_batch(x: Tensor, block_shape: list[int], paddings: list[list[int]]) -> Tensor:
    bh, bw = block_shape
    (top, bottom), (left, right) = paddings
    x = F.pad(x, (left, right, top, bottom))
    n, c, h, w = x.shape
    out = x.reshape(n, c, h // bh, bh, w // bw, bw).permute(3, 5, 0, 1, 2, 4)
    return out.reshape(n * bh * bw, c, h // bh, w // bw)


def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    n, c, h, w = x.shape
    b = block_size
    out = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return out.reshape(n, c * b * b, h // b, w // b)


def squeeze(x: Tensor, axes: list[int] | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def transpose(x: Tensor, perm: list[int]) -> Tensor:
    return x.permute(perm)
