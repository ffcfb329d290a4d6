"""MIL ops of the family ``image_resizing``. Each function is the op it is named after."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .padding import zero_pad


def _positions(size: int, out: int, mode: str, device: torch.device) -> Tensor:
    """Where ``out`` samples lie on an axis of ``size``: the formulas of ``resize_bilinear``."""
    i = torch.arange(out, dtype=torch.float32, device=device)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if out == 1:
            return i + ((size - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0)
        p = i * (size - 1) / (out - 1)
    elif mode == "DEFAULT":
        p = i * size / out
    elif mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / out
        p = 0.5 * delta + i * delta
    elif mode == "UNALIGN_CORNERS":
        p = (i + 0.5) * size / out - 0.5
    else:
        raise NotImplementedError(f"sampling_mode {mode!r}")
    return p.clamp(0, size - 1)


def _interpolate(x: Tensor, axis: int, position: Tensor) -> Tensor:
    """Linear interpolation of ``x`` along ``axis`` at fractional ``position`` (1-D)."""
    last = x.shape[axis] - 1
    low = position.floor().long().clamp(0, last)
    high = (low + 1).clamp(max=last)
    shape = [1] * x.dim()
    shape[axis] = -1
    w = (position - low).reshape(shape).to(x.dtype)
    return x.index_select(axis, low) * (1 - w) + x.index_select(axis, high) * w


def _resize_linear(x: Tensor, sizes: list[int], mode: str) -> Tensor:
    for axis, size in zip(range(-len(sizes), 0), sizes, strict=True):
        x = _interpolate(x, axis % x.dim(), _positions(x.shape[axis], size, mode, x.device))
    return x


def _resize_nearest(x: Tensor, sizes: list[int]) -> Tensor:
    for axis, size in zip(range(-len(sizes), 0), sizes, strict=True):
        index = torch.arange(size, device=x.device, dtype=torch.float64) * (x.shape[axis] / size)
        x = x.index_select(axis % x.dim(), index.floor().long().clamp(max=x.shape[axis] - 1))
    return x


def _fold(p: Tensor, size: int, mode: str) -> Tensor:
    """Bring pixel coordinates outside the image back in, as ``padding_mode`` says."""
    if mode == "reflection" and size > 1:
        p = (size - 1) - (p.remainder(2 * (size - 1)) - (size - 1)).abs()
    elif mode == "symmetric":
        p = (size - 0.5) - ((p + 0.5).remainder(2 * size) - size).abs()
    return p if mode == "constant" else p.clamp(0, size - 1)


def _sample(
    x: Tensor, px: Tensor, py: Tensor, nearest: bool, padding: str, padding_value: float
) -> Tensor:
    """Sample x (B, C, H, W) at pixel coordinates px, py (B, H2, W2) -> (B, C, H2, W2)."""
    b, _, h, w = x.shape
    px, py = _fold(px, w, padding), _fold(py, h, padding)
    batch = torch.arange(b, device=x.device).reshape(b, 1, 1)

    def at(iy: Tensor, ix: Tensor) -> Tensor:
        values = x[batch, :, iy.clamp(0, h - 1), ix.clamp(0, w - 1)].permute(0, 3, 1, 2)
        if padding == "constant":
            inside = (iy >= 0) & (iy < h) & (ix >= 0) & (ix < w)
            values = torch.where(inside.unsqueeze(1), values, padding_value)
        return values

    if nearest:
        return at(py.round().long(), px.round().long())
    y0, x0 = py.floor(), px.floor()
    wy, wx = (py - y0).unsqueeze(1).to(x.dtype), (px - x0).unsqueeze(1).to(x.dtype)
    iy, ix = y0.long(), x0.long()
    top = at(iy, ix) * (1 - wx) + at(iy, ix + 1) * wx
    bottom = at(iy + 1, ix) * (1 - wx) + at(iy + 1, ix + 1) * wx
    return top * (1 - wy) + bottom * wy


def _pixel(c: Tensor, size: int, mode: str, align_corners: bool) -> Tensor:
    """Coordinates in the convention ``coordinates_mode`` -> pixel coordinates."""
    if mode == "unnormalized":
        return c
    unit = (c + 1) / 2 if mode == "normalized_minus_one_to_one" else c
    return unit * (size - 1) if align_corners else unit * size - 0.5


def affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    def axis(size: int) -> Tensor:
        steps = torch.arange(size, dtype=torch.float32, device=x.device)
        if align_corners:
            return steps * (2 / max(size - 1, 1)) - 1
        return (steps + 0.5) * (2 / size) - 1

    ys, xs = torch.meshgrid(axis(output_height), axis(output_width), indexing="ij")
    matrix = transform_matrix.float().expand(x.shape[0], 6)
    a0, a1, a2, b0, b1, b2 = (matrix[:, i].reshape(-1, 1, 1) for i in range(6))
    px = _pixel(a0 * xs + a1 * ys + a2, x.shape[3], coordinates_mode, align_corners)
    py = _pixel(b0 * xs + b1 * ys + b2, x.shape[2], coordinates_mode, align_corners)
    return _sample(x, px, py, sampling_mode == "nearest", padding_mode, padding_value)


def crop(x: Tensor, crop_height: list[int], crop_width: list[int]) -> Tensor:
    (top, bottom), (left, right) = crop_height, crop_width
    return zero_pad(x, [(-top, -bottom), (-left, -right)])


def crop_resize(
    x: Tensor,
    roi: Tensor | None = None,
    boxes: Tensor | None = None,
    box_indices: list[int] | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float | None = None,
) -> Tensor:
    """Crop boxes out of x (B, C, H, W) and resize them bilinearly.

    Up to iOS16 the boxes come as ``roi`` (N, 1, 4 or 5, 1, 1) and the result is
    (N, B or 1, C, th, tw); from iOS17 as ``boxes`` (N, 4) with ``box_indices`` (N,), and the
    result is (N, C, th, tw).
    """
    b, _, h, w = x.shape
    if roi is not None:
        table = roi.reshape(roi.shape[0], -1).float()
        indexed = table.shape[1] == 5
        images = (
            [[int(i)] for i in table[:, 0].tolist()] if indexed else [list(range(b))] * len(table)
        )
        table = table[:, 1:] if indexed else table
    else:
        assert boxes is not None
        table = boxes.float()
        images = [[i] for i in (box_indices if box_indices is not None else range(len(table)))]

    crops = []
    for box, sources in zip(table, images, strict=True):
        c0, c1, c2, c3 = (box * spatial_scale).tolist()
        if box_coordinate_mode.endswith("WIDTH_FIRST"):
            c0, c1, c2, c3 = c1, c0, c3, c2
        y0, x0, y1, x1 = c0, c1, c2, c3
        if box_coordinate_mode.startswith("CENTER_SIZE"):
            y0, x0, y1, x1 = c0 - c2 / 2, c1 - c3 / 2, c0 + c2 / 2, c1 + c3 / 2
        if normalized_coordinates:
            y0, y1, x0, x1 = y0 * (h - 1), y1 * (h - 1), x0 * (w - 1), x1 * (w - 1)
        starts_outside = min(y0, x0) < 0 or y0 > h - 1 or x0 > w - 1
        if pad_value is None and normalized_coordinates and starts_outside:
            # iOS15 has no pad_value; its only test of a normalised box that starts outside the
            # image expects the whole image.
            y0, y1, x0, x1 = 0, h - 1, 0, w - 1
        py = _box_positions(y0, y1, target_height, sampling_mode, x.device)
        px = _box_positions(x0, x1, target_width, sampling_mode, x.device)
        gy, gx = torch.meshgrid(py, px, indexing="ij")
        picked = x[sources]
        outside = (gy < 0) | (gy > h - 1) | (gx < 0) | (gx > w - 1)
        n = len(sources)
        sampled = _sample(picked, gx.expand(n, -1, -1), gy.expand(n, -1, -1), False, "border", 0.0)
        crops.append(torch.where(outside, pad_value or 0.0, sampled))
    out = torch.stack(crops)
    return out if roi is not None else out.squeeze(1)


def _box_positions(start: float, end: float, out: int, mode: str, device: torch.device) -> Tensor:
    i = torch.arange(out, dtype=torch.float32, device=device)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if out == 1:
            return i + ((start + end) / 2 if mode == "ALIGN_CORNERS" else start)
        return start + i * ((end - start) / (out - 1))
    if mode == "UNALIGN_CORNERS":
        spacing = (end - start + 1) / out
        return start + (i + 0.5) * spacing - 0.5
    if mode == "OFFSET_CORNERS":
        spacing = (end - start) / out
        return start + (i + 0.5) * spacing
    return start + i * ((end - start + 1) / out)


def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    grid = coordinates.float()
    px = _pixel(grid[..., 0], x.shape[3], coordinates_mode, align_corners)
    py = _pixel(grid[..., 1], x.shape[2], coordinates_mode, align_corners)
    return _sample(x, px, py, sampling_mode == "nearest", padding_mode, padding_value)


def resize(
    x: Tensor,
    shape: list[int],
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    asked = shape[len(shape) - resized_dims :]
    sizes = [s or x.shape[x.dim() - resized_dims + i] for i, s in enumerate(asked)]
    if interpolation_mode == "NEAREST_NEIGHBOR":
        # Unlike resize_nearest_neighbor this op rounds; a tie goes to the lower index, so that
        # whole scale factors repeat every element equally often.
        for axis, size in zip(range(x.dim() - len(sizes), x.dim()), sizes, strict=True):
            position = _positions(x.shape[axis], size, sampling_mode, x.device)
            x = x.index_select(axis, (position - 0.5).ceil().long().clamp(0, x.shape[axis] - 1))
        return x
    return _resize_linear(x, sizes, sampling_mode)


def resize_bilinear(
    x: Tensor,
    target_size_height: int = 1,
    target_size_width: int = 1,
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    return _resize_linear(x, [target_size_height, target_size_width], sampling_mode)


def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    return _resize_nearest(x, [target_size_height, target_size_width])


def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    sizes = [
        math.floor(scale_factor_height * x.shape[-2]),
        math.floor(scale_factor_width * x.shape[-1]),
    ]
    if half_pixel_centers is None:
        half_pixel_centers = not align_corners
    if align_corners:
        mode = "STRICT_ALIGN_CORNERS"
    else:
        mode = "UNALIGN_CORNERS" if half_pixel_centers else "DEFAULT"
    return _resize_linear(x, sizes, mode)


def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1
) -> Tensor:
    sizes = [
        math.floor(scale_factor_height * x.shape[-2]),
        math.floor(scale_factor_width * x.shape[-1]),
    ]
    return _resize_nearest(x, sizes)
