"""MIL ops of the family ``scatter_gather``. Each function is the op it is named after.

Up to iOS16 (``validate_indices`` absent) negative indices count from the end. From iOS17 they are
out of range: with ``validate_indices`` an error, without it what happens is undefined, and here
gathers yield zeros and scatters skip the place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .fused import hidden


def _resolve(indices: Tensor, size: int, validate: bool | None) -> tuple[Tensor, Tensor | None]:
    """Indices that torch can take, and where they are in range (None for everywhere)."""
    index = indices.long()
    if validate is None:
        return torch.where(index < 0, index + size, index), None
    inside = (index >= 0) & (index < size)
    if not hidden(inside) and bool(inside.all()):
        return index, None
    if validate and hidden(inside):
        raise NotImplementedError("indices are validated one sample after the other")
    if validate:
        raise IndexError(f"index out of range for an axis of size {size}")
    return index.clamp(0, max(size - 1, 0)), inside


def _zero_outside(out: Tensor, inside: Tensor | None, axis: int) -> Tensor:
    """Zero what was gathered from out of range; ``inside`` spans axes of out from ``axis`` on."""
    if inside is None:
        return out
    trailing = out.dim() - axis - inside.dim()
    zero = torch.zeros((), dtype=out.dtype, device=out.device)
    return torch.where(inside.reshape(*inside.shape, *([1] * trailing)), out, zero)


def gather(
    x: Tensor,
    indices: Tensor,
    axis: int = 0,
    batch_dims: int = 0,
    validate_indices: bool | None = None,
) -> Tensor:
    axis = axis % x.dim()
    index, inside = _resolve(indices, x.shape[axis], validate_indices)
    if not batch_dims:
        picked = x.index_select(axis, index.reshape(-1))
        out = picked.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])
        return _zero_outside(out, inside, axis)
    batch = x.shape[:batch_dims]
    flat = x.reshape(math.prod(batch), *x.shape[batch_dims:])
    rows = index.reshape(flat.shape[0], -1)
    inner = axis - batch_dims
    out = torch.stack([row.index_select(inner, i) for row, i in zip(flat, rows, strict=True)])
    out = out.reshape(*x.shape[:axis], *index.shape[batch_dims:], *x.shape[axis + 1 :])
    if inside is not None:
        between = [1] * (axis - batch_dims)
        inside = inside.reshape(*batch, *between, *index.shape[batch_dims:])
    return _zero_outside(out, inside, 0)


def gather_along_axis(
    x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool | None = None
) -> Tensor:
    axis = axis % x.dim()
    index, inside = _resolve(indices, x.shape[axis], validate_indices)
    # The other axes broadcast, as numpy's take_along_axis has it.
    sizes = zip(x.shape, index.shape, strict=True)
    shape = [a if d == axis else max(a, b) for d, (a, b) in enumerate(sizes)]
    target = list(shape)
    target[axis] = index.shape[axis]
    return _zero_outside(torch.gather(x.expand(shape), axis, index.expand(target)), inside, 0)


def gather_nd(
    x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool | None = None
) -> Tensor:
    if batch_dims:
        batch = x.shape[:batch_dims]
        flat = x.reshape(math.prod(batch), *x.shape[batch_dims:])
        rows = indices.reshape(math.prod(batch), *indices.shape[batch_dims:])
        pairs = zip(flat, rows, strict=True)
        out = torch.stack([gather_nd(a, i, 0, validate_indices) for a, i in pairs])
        return out.reshape(*batch, *out.shape[1:])
    index, inside = _resolve_nd(indices, x.shape, validate_indices)
    return _zero_outside(x[tuple(index)], inside, 0)


def _resolve_nd(
    indices: Tensor, shape: torch.Size, validate: bool | None
) -> tuple[list[Tensor], Tensor | None]:
    """``_resolve`` for indices whose last axis runs over the leading axes of ``shape``."""
    resolved = [_resolve(i, shape[d], validate) for d, i in enumerate(indices.unbind(-1))]
    inside = None
    for _, valid in resolved:
        if valid is not None:
            inside = valid if inside is None else inside & valid
    return [index for index, _ in resolved], inside


def _merge(
    data: Tensor, index: list[Tensor], inside: Tensor | None, updates: Tensor, mode: str
) -> Tensor:
    """``data`` with ``updates`` merged in at ``index``, repeated indices one after the other."""
    full = list(torch.broadcast_tensors(*index))
    updates = updates.expand(full[0].shape).to(data.dtype)
    if inside is not None:
        inside = inside.expand(full[0].shape)
        full, updates = [i[inside] for i in full], updates[inside]
    out = data.clone()
    if mode == "update":
        return out.index_put_(tuple(full), updates)
    if mode in ("add", "sub"):
        signed = updates if mode == "add" else -updates
        return out.index_put_(tuple(full), signed, accumulate=True)
    reduce = {"mul": "prod", "div": "prod", "max": "amax", "min": "amin"}[mode]
    linear = torch.zeros_like(full[0])
    for i, size in zip(full, data.shape, strict=True):
        linear = linear * size + i
    values = updates.reshape(-1)
    if mode == "div":
        # Division by repeated indices in turn is division by their product.
        product = torch.ones_like(data).reshape(-1)
        product = product.scatter_reduce(0, linear.reshape(-1), values, "prod")
        quotient = torch.div(
            out,
            product.reshape(out.shape),
            rounding_mode=None if out.is_floating_point() else "trunc",
        )
        return quotient.to(data.dtype)
    flat = out.reshape(-1).scatter_reduce(0, linear.reshape(-1), values, reduce)
    return flat.reshape(data.shape)


def _grid(shape: torch.Size, device: torch.device) -> list[Tensor]:
    axes = (torch.arange(n, device=device) for n in shape)
    return list(torch.meshgrid(*axes, indexing="ij"))


def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool | None = None,
) -> Tensor:
    axis = axis % data.dim()
    index, inside = _resolve(indices.reshape(-1), data.shape[axis], validate_indices)
    updates = updates.reshape(*data.shape[:axis], index.numel(), *data.shape[axis + 1 :])
    if mode in ("add", "sub"):
        sign = 1 if mode == "add" else -1
        updates = updates.to(data.dtype)
        if inside is not None:
            shape = [-1 if d == axis else 1 for d in range(data.dim())]
            nothing = torch.tensor(-0.0 * sign, dtype=data.dtype, device=data.device)
            updates = torch.where(inside.reshape(shape), updates, nothing)  # x + -0 is x, for any x
        return data.index_add(axis, index, updates, alpha=sign)
    grid = _grid(updates.shape, data.device)
    if inside is not None:
        inside = inside[grid[axis]]
    grid[axis] = index[grid[axis]]
    return _merge(data, grid, inside, updates, mode)


def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool | None = None,
) -> Tensor:
    axis = axis % data.dim()
    grid = _grid(indices.shape, data.device)
    grid[axis], inside = _resolve(indices, data.shape[axis], validate_indices)
    return _merge(data, grid, inside, updates, mode)


def scatter_nd(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    mode: str = "add",
    validate_indices: bool | None = None,
) -> Tensor:
    depth = indices.shape[-1]
    leading = indices.shape[:-1]
    tail = data.shape[depth:]
    ones = [1] * len(tail)
    index, inside = _resolve_nd(indices, data.shape, validate_indices)
    index = [i.reshape(*leading, *ones) for i in index]
    if inside is not None:
        inside = inside.reshape(*leading, *ones)
    grid = _grid(torch.Size([*leading, *tail]), data.device) if tail else []
    return _merge(data, index + grid[len(leading) :], inside, updates, mode)
