"""Composite ops in steps, each of which is rounded: what ``strict`` computes.

The steps are those of the formulas in coremltools' op definitions; in which order Apple's kernels
add is not public, and ``strict`` adds one by one (:mod:`mpsearch.numerics.orders`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import orders
from .formats import widen
from .sums import accumulated, products, rows_at_once, summed
from .taps import conv_transposed, convolved


def inner_peak(function: Callable[..., Any], arguments: dict[str, Any]) -> Tensor:
    """The largest magnitude among the inner steps of a composite op, computed in FP32: a scalar."""
    peak = torch.zeros(())

    def see(out: Any) -> Any:
        nonlocal peak
        if isinstance(out, Tensor) and out.is_floating_point() and out.numel():
            with torch._C.DisableTorchFunction():
                peak = torch.maximum(peak, out.abs().max().float().to(peak.device))
        return out

    with Replaced(STEPS, after=see):
        function(**{k: widen(v) for k, v in arguments.items()})
    return peak


class Replaced(TorchFunctionMode):
    """Run an op's function with some torch functions replaced and every result passed on."""

    def __init__(
        self,
        replacements: dict[Any, Callable[..., Any]],
        after: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        self._replacements = replacements
        self._after = after

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        replacement = self._replacements.get(func)
        if replacement is not None:
            with self:  # the replacement's own steps are seen as well
                return replacement(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        return out if self._after is None else self._after(out)


def watched() -> bool:
    """Whether the inner steps of an op are seen: it must then run them one by one."""
    stack = torch.overrides._get_current_function_mode_stack()
    return any(isinstance(mode, Replaced) for mode in stack)


def round_floats(out: Any) -> Any:
    """Round a float result to FP16, kept in FP32 storage for the next step."""
    if isinstance(out, Tensor):
        return out.half().float() if out.dtype is torch.float32 else out
    return tuple(map(round_floats, out)) if isinstance(out, tuple) else out


def _running(x: Tensor, dim: int, step: Callable[..., Tensor]) -> Tensor:
    """What ``step`` makes of the elements along an axis so far, one FP16 result after the other."""
    first = x.half().movedim(dim, 0).contiguous()
    if len(first):
        first = accumulated(first, step)
    return first.movedim(0, dim).float()


def _cumsum(x: Tensor, dim: int, **_: Any) -> Tensor:
    with torch._C.DisableTorchFunction():
        return _running(x, dim, torch.add) if x.is_floating_point() else torch.cumsum(x, dim)


def _prod(x: Tensor, dim: int, keepdim: bool = False, **_: Any) -> Tensor:
    with torch._C.DisableTorchFunction():
        if not x.is_floating_point() or not x.shape[dim]:
            return torch.prod(x, dim, keepdim)
        out = _running(x, dim, torch.mul).select(dim, -1)
        return out.unsqueeze(dim) if keepdim else out


def _gelu(x: Tensor, approximate: str = "none", **_: Any) -> Tensor:
    if approximate == "tanh":
        inner = torch.mul(0.044715, torch.mul(torch.mul(x, x), x))
        gate = torch.tanh(torch.mul(math.sqrt(2 / math.pi), torch.add(x, inner)))
    else:
        gate = torch.erf(torch.mul(x, math.sqrt(0.5)))
    return torch.mul(torch.mul(0.5, x), torch.add(1, gate))


def _silu(x: Tensor, **_: Any) -> Tensor:
    return torch.mul(x, torch.sigmoid(x))


def _softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    return torch.log(torch.add(1, torch.exp(x)))


def _batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    **_: Any,
) -> Tensor:
    shape = (-1,) + (1,) * (x.dim() - 2)
    centred = torch.sub(x, mean.reshape(shape))
    out = torch.div(centred, torch.sqrt(torch.add(variance.reshape(shape), eps)))
    out = out if weight is None else torch.mul(out, weight.reshape(shape))
    return out if bias is None else torch.add(out, bias.reshape(shape))


def _each(value: Any, rank: int) -> list[int]:
    """A value for each axis."""
    return list(value) if isinstance(value, (list, tuple)) else [value] * rank


class Steps:
    """Composite ops in steps, with sums taken in an order.

    Parameters
    ----------
    order
        One of :data:`mpsearch.numerics.orders.ORDERS`.
    fused
        Whether products go into a sum unrounded, as fused multiply-add has them.

    Attributes
    ----------
    table
        By torch function, what takes its place.
    """

    def __init__(self, order: str = "sequential", fused: bool = False) -> None:
        self._order, self._fused = order, fused
        orders.order(order)
        self.table: dict[Any, Callable[..., Any]] = {
            torch.sum: self._sum,
            torch.Tensor.sum: self._sum,
            torch.mean: self._mean,
            torch.Tensor.mean: self._mean,
            torch.cumsum: _cumsum,
            torch.prod: _prod,
            torch.einsum: self._einsum,
            torch.matmul: self._matmul,
            torch.Tensor.matmul: self._matmul,
            torch.Tensor.__matmul__: self._matmul,
            F.conv_transpose1d: self._conv_transpose(1),
            F.conv_transpose2d: self._conv_transpose(2),
            F.conv_transpose3d: self._conv_transpose(3),
            F.avg_pool1d: self._avg_pool(1),
            F.avg_pool2d: self._avg_pool(2),
            F.avg_pool3d: self._avg_pool(3),
            F.linear: self._linear,
            F.conv1d: self._conv(1),
            F.conv2d: self._conv(2),
            F.conv3d: self._conv(3),
            F.softmax: self._softmax,
            torch.logsumexp: self._logsumexp,
            F.gelu: _gelu,
            F.silu: _silu,
            F.softplus: _softplus,
            F.layer_norm: self._layer_norm,
            F.instance_norm: self._instance_norm,
            F.batch_norm: _batch_norm,
            F.scaled_dot_product_attention: self._attention,
        }

    def _sum_over(self, x: Tensor) -> Tensor:
        """Sum over the first axis by FP16 additions."""
        return summed([x.half().contiguous()], self._order).float()

    def _sum(self, x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
        if not x.is_floating_point():
            with torch._C.DisableTorchFunction():
                return torch.sum(x, dim=dim, keepdim=keepdim)
        dims = range(x.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
        reduced = sorted(d % x.dim() for d in dims)
        with torch._C.DisableTorchFunction():
            kept = [d for d in range(x.dim()) if d not in reduced]
            sizes = [x.shape[d] for d in kept]
            terms = math.prod(x.shape[d] for d in reduced)
            out = self._sum_over(x.permute(reduced + kept).reshape([terms, *sizes]))
            return (
                out.reshape([1 if d in reduced else n for d, n in enumerate(x.shape)])
                if keepdim
                else out
            )

    def _mean(self, x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
        total = self._sum(x, dim, keepdim)
        return torch.div(total, x.numel() // max(total.numel(), 1))

    def _einsum(self, equation: str, *operands: Tensor) -> Tensor:
        """Two operands as a batched product: indices of both that the output lacks are summed."""
        left, out = equation.replace(" ", "").split("->")
        a, b = left.split(",")
        x, y = operands
        with torch._C.DisableTorchFunction():
            lone = [i for i in a if i not in b + out], [i for i in b if i not in a + out]
        for index in lone[0]:
            x, a = self._sum(x, a.index(index)), a.replace(index, "")
        for index in lone[1]:
            y, b = self._sum(y, b.index(index)), b.replace(index, "")
        with torch._C.DisableTorchFunction():
            batch = [i for i in a if i in b and i in out]
            summed = [i for i in a if i in b and i not in out]
            rows, columns = [i for i in a if i not in b], [i for i in b if i not in a]
            sizes = dict(zip(a + b, (*x.shape, *y.shape), strict=True))
            shape = [sizes[i] for i in batch]
            x = x.permute([a.index(i) for i in batch + rows + summed])
            y = y.permute([b.index(i) for i in batch + summed + columns])
            inner = math.prod(sizes[i] for i in summed)
            x = x.reshape([*shape, math.prod(sizes[i] for i in rows), inner])
            y = y.reshape([*shape, inner, math.prod(sizes[i] for i in columns)])
            product = self._matmul(x, y).reshape([sizes[i] for i in batch + rows + columns])
            made = batch + rows + columns
            return product.permute([made.index(i) for i in out])

    def _matmul(self, x: Tensor, y: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            if not x.is_floating_point():
                return torch.matmul(x, y)
            row, column = x.dim() == 1, y.dim() == 1
            a = x.unsqueeze(0) if row else x
            b = y.unsqueeze(-1) if column else y
            out = self._product(a, b)
            out = out.squeeze(-2) if row else out
            return out.squeeze(-1) if column else out

    def _product(self, x: Tensor, y: Tensor) -> Tensor:
        """A product of matrices in FP32 storage: (..., M, K) and (..., K, N) to (..., M, N)."""
        depth = max(x.dim(), y.dim())
        x, y = (v[(None,) * (depth - v.dim())] for v in (x, y))
        a = x.half().movedim(-1, 0).contiguous().unsqueeze(-1)  # (K, ..., M, 1)
        b = y.half().movedim(-2, 0).contiguous().unsqueeze(-2)  # (K, ..., 1, N)
        rows = rows_at_once(math.prod(map(max, a.shape[1:-2], b.shape[1:-2])) * y.shape[-1])
        parts = [
            summed(products(a[..., start : start + rows, :], b, self._fused), self._order)
            for start in range(0, max(x.shape[-2], 1), rows)
        ]
        return torch.cat(parts, -2).float()

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out = self._matmul(x, weight.T)
        return out if bias is None else torch.add(out, bias)

    def _conv(self, rank: int) -> Callable[..., Tensor]:
        def conv(
            x: Tensor,
            weight: Tensor,
            bias: Tensor | None = None,
            stride: Any = 1,
            padding: Any = 0,
            dilation: Any = 1,
            groups: int = 1,
        ) -> Tensor:
            with torch._C.DisableTorchFunction():
                x = F.pad(x, [p for p in reversed(_each(padding, rank)) for _ in range(2)])
                strides, dilations = _each(stride, rank), _each(dilation, rank)
                out = convolved(x, weight, strides, dilations, groups, self._order, self._fused)
            return out if bias is None else torch.add(out, bias.reshape((-1,) + (1,) * rank))

        return conv

    def _conv_transpose(self, rank: int) -> Callable[..., Tensor]:
        def conv_transpose(
            x: Tensor,
            weight: Tensor,
            bias: Tensor | None = None,
            stride: Any = 1,
            padding: Any = 0,
            output_padding: Any = 0,
            groups: int = 1,
            dilation: Any = 1,
        ) -> Tensor:
            with torch._C.DisableTorchFunction():
                strides, dilations = _each(stride, rank), _each(dilation, rank)
                out = conv_transposed(
                    x, weight, strides, dilations, groups, self._order, self._fused
                )
                ends = zip(_each(padding, rank), _each(output_padding, rank), strict=True)
                out = F.pad(out, [n for p, e in reversed(list(ends)) for n in (-p, e - p)])
            return out if bias is None else torch.add(out, bias.reshape((-1,) + (1,) * rank))

        return conv_transpose

    def _avg_pool(self, rank: int) -> Callable[..., Tensor]:
        def avg_pool(x: Tensor, kernel_size: Any, stride: Any = None, **_: Any) -> Tensor:
            with torch._C.DisableTorchFunction():
                windows = x.half()
                for axis in range(rank):
                    step = kernel_size[axis] if stride is None else stride[axis]
                    windows = windows.unfold(2 + axis, kernel_size[axis], step)
                kernel = tuple(range(2 + rank, 2 + 2 * rank))
                windows = windows.movedim(kernel, tuple(range(rank)))
                terms = (windows[tap][None].clone() for tap in product(*map(range, kernel_size)))
                total = summed(terms, self._order).float()
            return torch.div(total, math.prod(kernel_size))

        return avg_pool

    def _softmax(self, x: Tensor, dim: int = -1, **_: Any) -> Tensor:
        e = torch.exp(torch.sub(x, torch.amax(x, dim=dim, keepdim=True)))
        return torch.div(e, self._sum(e, dim, True))

    def _logsumexp(self, x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
        return torch.log(self._sum(torch.exp(x), dim, keepdim))

    def _normalise(self, x: Tensor, dims: list[int], eps: float) -> Tensor:
        centred = torch.sub(x, self._mean(x, dims, True))
        variance = self._mean(torch.mul(centred, centred), dims, True)
        return torch.div(centred, torch.sqrt(torch.add(variance, eps)))

    def _layer_norm(
        self,
        x: Tensor,
        normalized_shape: Any,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        out = self._normalise(x, list(range(-len(normalized_shape), 0)), eps)
        out = out if weight is None else torch.mul(out, weight)
        return out if bias is None else torch.add(out, bias)

    def _instance_norm(
        self,
        x: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        **_: Any,
    ) -> Tensor:
        shape = (-1,) + (1,) * (x.dim() - 2)
        out = self._normalise(x, list(range(2, x.dim())), eps)
        out = out if weight is None else torch.mul(out, weight.reshape(shape))
        return out if bias is None else torch.add(out, bias.reshape(shape))

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        scaled = torch.mul(query, 1 / math.sqrt(query.shape[-1]))
        logits = self._matmul(scaled, key.transpose(-1, -2))
        if attn_mask is not None:
            if attn_mask.dtype is torch.bool:
                attn_mask = torch.where(attn_mask, 0.0, -math.inf)
            logits = torch.add(logits, attn_mask)
        return self._matmul(self._softmax(logits), value)


#: With sums one by one.
STEPS = Steps().table


#: Ops that are one function of one element of each input, of which the result is rounded in any
#: profile. Whatever stands neither here nor among the moves is taken for more than one step.
ONE_STEP = frozenset(
    [
        *("abs", "acos", "asin", "atan", "atanh", "cast", "ceil", "clip", "cos", "cosh", "erf"),
        *("exp", "exp2", "floor", "logical_not", "round", "sign", "sin", "sinh", "sqrt", "square"),
        *("tan", "tanh", "threshold", "add", "equal", "greater", "greater_equal", "less"),
        *("less_equal", "logical_and", "logical_or", "logical_xor", "mul", "not_equal", "pow"),
        *("real_div", "sub", "relu6", "sigmoid", "thresholded_relu", "fill", "fill_like", "pad"),
        *("reduce_max", "reduce_min", "reduce_argmax", "reduce_argmin", "max_pool", "argsort"),
        *("topk", "non_zero", "one_hot", "shape", "range_1d", "band_part", "classify"),
    ]
)
