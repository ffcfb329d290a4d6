"""PyTorch ops that coremltools 9.0 does not convert, or not every use of, made of MIL ops.

Written as Apple documents it for composite operators
(https://apple.github.io/coremltools/docs-guides/source/composite-operators.html). A function is
copied into ``op_selector.py`` where a model needs it, so that it needs no more than the imports
below and :data:`SHARED`. A function gives ``NotImplemented``, and makes no op, for what
coremltools converts itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .._ct import quiet

with quiet():
    from coremltools.converters.mil.frontend.torch.ops import (
        _get_inputs,
        _get_kwinputs,
        convert_block,
    )
    from coremltools.converters.mil.frontend.torch.torch_op_registry import (
        _TORCH_OPS_REGISTRY,
        register_torch_op,
    )
    from coremltools.converters.mil.frontend.torch.utils import sanitize_op_kind
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - its usual name
    from coremltools.converters.mil.mil import types

Conversion = Callable[[Any, Any], Any]

#: What the functions need, as ``op_selector.py`` imports it.
IMPORTS = """\
import numpy as np
import torch
from coremltools.converters.mil.frontend.torch import register_torch_op
from coremltools.converters.mil.frontend.torch.ops import (
    _get_inputs,
    _get_kwinputs,
    convert_block,
)
from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types"""


@contextmanager
def registered() -> Iterator[list[str]]:
    """Within, coremltools converts the ops of this module, but for those that it knows itself.

    Those of :data:`PARTLY` come before coremltools' own conversions, which take the other uses.
    Gives the names of those that were converted, as it goes.
    """
    used: list[str] = []
    before = dict(_TORCH_OPS_REGISTRY.name_to_func_mapping)
    for name, conversion in CONVERSIONS.items():
        if name in PARTLY or name not in before:
            register_torch_op(where_needed(name, _noting(name, conversion, used)), override=True)
    try:
        yield used
    finally:
        for name in CONVERSIONS:
            _TORCH_OPS_REGISTRY.name_to_func_mapping.pop(name, None)
            if name in before:
                _TORCH_OPS_REGISTRY.name_to_func_mapping[name] = before[name]


def unknown_ops(program: Any) -> set[str]:
    """The ops of an exported program that neither coremltools nor this module converts."""
    found = set()
    for node in program.graph.nodes:
        if node.op == "call_function" and hasattr(node.target, "name"):
            kind = sanitize_op_kind(node.target.name())
            if kind not in _TORCH_OPS_REGISTRY.name_to_func_mapping and kind not in CONVERSIONS:
                found.add(str(node.target))
    return found


def _noting(name: str, conversion: Conversion, used: list[str]) -> Conversion:
    def convert(context: Any, node: Any) -> Any:
        made = conversion(context, node)
        if made is not NotImplemented and name not in used:
            used.append(name)
        return made

    return convert


def sources(names: list[str]) -> list[str]:
    """The source of the conversions of these ops, and of what they share."""
    found = [inspect.getsource(one) for one in dict.fromkeys(CONVERSIONS[name] for name in names)]
    for helper in reversed(SHARED):  # the later of them call the earlier
        if any(f"{helper.__name__}(" in text for text in found):
            found.insert(0, inspect.getsource(helper))
    return [*found, inspect.getsource(where_needed)]


def where_needed(name, conversion):  # type: ignore[no-untyped-def]
    """A conversion of the PyTorch op ``name``: coremltools' own where ``conversion`` has none."""
    own = _TORCH_OPS_REGISTRY.get_func(name)

    def convert(context, node):  # type: ignore[no-untyped-def]
        if conversion(context, node) is NotImplemented:
            own(context, node)

    convert.__name__ = name
    return convert


def _argument(context, node, place, name, default=None):  # type: ignore[no-untyped-def]
    """An argument, by position or by name."""
    inputs = _get_inputs(context, node)
    found = inputs[place] if len(inputs) > place else None
    if found is None:
        (found,) = _get_kwinputs(context, node, name, default=[None])
    if found is None:
        return default
    return found.val if getattr(found, "val", None) is not None else found


def _float(var):  # type: ignore[no-untyped-def]
    return var if types.is_float(var.dtype) else mb.cast(x=var, dtype="fp32")


def new_ones(context, node):  # type: ignore[no-untyped-def]
    """x.new_ones(size, dtype=)"""
    inputs = _get_inputs(context, node)
    x, size = inputs[0], inputs[1]
    if isinstance(size, (list, tuple)):
        size = mb.concat(values=size, axis=0) if size else None
    elif size.shape == (0,):
        size = None
    number = _argument(context, node, 2, "dtype")
    kinds = {5: "fp16", 6: "fp32", 7: "fp32", 11: "bool"}
    if number is None:
        kind = types.builtin_to_string(x.dtype)
    elif isinstance(number, torch.dtype):
        kind = "fp32" if number.is_floating_point else "bool" if number is torch.bool else "int32"
    else:
        kind = kinds.get(int(number), "int32")
    kind = "int32" if kind.startswith(("int", "uint")) else kind
    one = types.nptype_from_builtin(types.string_to_builtin(kind))(1)
    if size is None:
        context.add(mb.const(val=one, name=node.name))
    else:
        context.add(mb.fill(shape=size, value=one, name=node.name))


def diff(context, node):  # type: ignore[no-untyped-def]
    """torch.diff(x, n=1, dim=-1, prepend=None, append=None)"""
    x = _get_inputs(context, node)[0]
    n, axis = int(_argument(context, node, 1, "n", 1)), int(_argument(context, node, 2, "dim", -1))
    before = _argument(context, node, 3, "prepend")
    after = _argument(context, node, 4, "append")
    parts = [part for part in (before, x, after) if part is not None]
    x = mb.concat(values=parts, axis=axis) if len(parts) > 1 else x
    axis %= x.rank
    for step in range(n):
        start, end = [0] * x.rank, [0] * x.rank
        start[axis], end[axis] = 1, -1
        free = [True] * x.rank
        held = [place != axis for place in range(x.rank)]
        upper = mb.slice_by_index(x=x, begin=start, end=end, begin_mask=held, end_mask=free)
        lower = mb.slice_by_index(x=x, begin=start, end=end, begin_mask=free, end_mask=held)
        name = node.name if step == n - 1 else f"{node.name}_{step}"
        if types.is_bool(x.dtype):
            x = mb.logical_xor(x=upper, y=lower, name=name)
        else:
            x = mb.sub(x=upper, y=lower, name=name)
    context.add(x if n else mb.identity(x=x, name=node.name))


def _resized(context, node, resize):  # type: ignore[no-untyped-def]
    """Height and width, resized by a product with a matrix each, whose rows torch computes."""
    x = _get_inputs(context, node)[0]
    size, corners = (
        _argument(context, node, 1, "output_size"),
        _argument(context, node, 2, "", False),
    )
    factors = [
        _argument(context, node, 3 + place, name)
        for place, name in enumerate(["scales_h", "scales_w"])
    ]
    if node.kind.endswith("vec") or len(node.inputs) == 4:
        factors = _argument(context, node, 3, "scale_factors")
    factors = (
        [None, None]
        if factors is None
        else [None if f is None else float(getattr(f, "val", f)) for f in factors]
    )
    if not all(isinstance(side, (int, np.integer)) for side in x.shape[2:]):
        raise ValueError("bicubic resizing needs inputs of one size: give samples of one size")
    sides = [int(side) for side in x.shape[2:]]
    if size is None:
        size = [int(side * factor) for side, factor in zip(sides, factors, strict=True)]
    size = [int(getattr(side, "val", side)) for side in size]
    # Of an image that is 1 on its diagonal, resized in height alone: what each row is made of.
    rows, columns = (
        resize(torch.eye(side)[None, None], [to, side], bool(corners), factor, None)[0, 0].numpy()
        for side, to, factor in zip(sides, size, factors, strict=True)
    )
    high = mb.matmul(x=rows, y=x)
    context.add(mb.matmul(x=high, y=columns, transpose_y=True, name=node.name))


def upsample_bicubic2d(context, node):  # type: ignore[no-untyped-def]
    """torch.nn.functional.interpolate(x, mode="bicubic")"""
    _resized(context, node, torch.ops.aten.upsample_bicubic2d)


def _upsample_bicubic2d_aa(context, node):  # type: ignore[no-untyped-def]
    """torch.nn.functional.interpolate(x, mode="bicubic", antialias=True)"""
    _resized(context, node, torch.ops.aten._upsample_bicubic2d_aa)


def alias(context, node):  # type: ignore[no-untyped-def]
    """What decomposed programs hand on as it is."""
    context.add(_get_inputs(context, node)[0], torch_name=node.name)


def trunc(context, node):  # type: ignore[no-untyped-def]
    """torch.trunc(x)"""
    x = _float(_get_inputs(context, node)[0])
    whole = mb.floor(x=mb.abs(x=x))
    context.add(mb.mul(x=mb.sign(x=x), y=whole, name=node.name))


def fmod(context, node):  # type: ignore[no-untyped-def]
    """torch.fmod(x, y)"""
    x, y = (_float(var) for var in _get_inputs(context, node)[:2])
    size = mb.mod(x=mb.abs(x=x), y=mb.abs(x=y))
    context.add(mb.mul(x=mb.sign(x=x), y=size, name=node.name))


def lerp(context, node):  # type: ignore[no-untyped-def]
    """torch.lerp(start, end, weight)"""
    start, end, weight = (_float(var) for var in _get_inputs(context, node)[:3])
    step = mb.mul(x=weight, y=mb.sub(x=end, y=start))
    context.add(mb.add(x=start, y=step, name=node.name))


def addcmul(context, node):  # type: ignore[no-untyped-def]
    """torch.addcmul(x, one, other, value=1)"""
    x, one, other = (_float(var) for var in _get_inputs(context, node)[:3])
    value = float(_argument(context, node, 3, "value", 1.0))
    product = mb.mul(x=one, y=other)
    product = product if value == 1 else mb.mul(x=product, y=value)
    context.add(mb.add(x=x, y=product, name=node.name))


def addcdiv(context, node):  # type: ignore[no-untyped-def]
    """torch.addcdiv(x, one, other, value=1)"""
    x, one, other = (_float(var) for var in _get_inputs(context, node)[:3])
    value = float(_argument(context, node, 3, "value", 1.0))
    quotient = mb.real_div(x=one, y=other)
    quotient = quotient if value == 1 else mb.mul(x=quotient, y=value)
    context.add(mb.add(x=x, y=quotient, name=node.name))


def hypot(context, node):  # type: ignore[no-untyped-def]
    """torch.hypot(x, y), by the larger of both, so that no square leaves the range"""
    x, y = (mb.abs(x=_float(var)) for var in _get_inputs(context, node)[:2])
    most = mb.maximum(x=x, y=y)
    share = mb.real_div(x=mb.minimum(x=x, y=y), y=mb.maximum(x=most, y=1e-30))
    root = mb.sqrt(x=mb.add(x=mb.square(x=share), y=1.0))
    context.add(mb.mul(x=most, y=root, name=node.name))


def logaddexp(context, node):  # type: ignore[no-untyped-def]
    """torch.logaddexp(x, y), by the larger of both"""
    x, y = (_float(var) for var in _get_inputs(context, node)[:2])
    less = mb.mul(x=mb.abs(x=mb.sub(x=x, y=y)), y=-1.0)
    rest = mb.log(x=mb.add(x=mb.exp(x=less), y=1.0), epsilon=1e-30)
    context.add(mb.add(x=mb.maximum(x=x, y=y), y=rest, name=node.name))


def isinf(context, node):  # type: ignore[no-untyped-def]
    """torch.isinf(x)"""
    x = _float(_get_inputs(context, node)[0])
    context.add(mb.equal(x=mb.abs(x=x), y=np.float32(np.inf), name=node.name))


def isfinite(context, node):  # type: ignore[no-untyped-def]
    """torch.isfinite(x)"""
    x = _float(_get_inputs(context, node)[0])
    context.add(mb.less(x=mb.abs(x=x), y=np.float32(np.inf), name=node.name))


def celu(context, node):  # type: ignore[no-untyped-def]
    """torch.celu(x, alpha=1): elu of x / alpha, times alpha"""
    x = _float(_get_inputs(context, node)[0])
    alpha = float(_argument(context, node, 1, "alpha", 1.0))
    inner = mb.elu(x=mb.mul(x=x, y=1 / alpha), alpha=1.0)
    context.add(mb.mul(x=inner, y=alpha, name=node.name))


def hardshrink(context, node):  # type: ignore[no-untyped-def]
    """torch.nn.functional.hardshrink(x, lambd=0.5)"""
    x = _float(_get_inputs(context, node)[0])
    most = float(_argument(context, node, 1, "lambd", 0.5))
    large = mb.greater(x=mb.abs(x=x), y=most)
    context.add(mb.select(cond=large, a=x, b=mb.mul(x=x, y=0.0), name=node.name))


def softshrink(context, node):  # type: ignore[no-untyped-def]
    """torch.nn.functional.softshrink(x, lambd=0.5)"""
    x = _float(_get_inputs(context, node)[0])
    most = float(_argument(context, node, 1, "lambd", 0.5))
    context.add(mb.sub(x=x, y=mb.clip(x=x, alpha=-most, beta=most), name=node.name))


def log_sigmoid(context, node):  # type: ignore[no-untyped-def]
    """torch.nn.functional.logsigmoid(x) = min(x, 0) - log(1 + exp(-|x|))"""
    x = _float(_get_inputs(context, node)[0])
    small = mb.exp(x=mb.mul(x=mb.abs(x=x), y=-1.0))
    rest = mb.log(x=mb.add(x=small, y=1.0), epsilon=1e-30)
    context.add(mb.sub(x=mb.minimum(x=x, y=0.0), y=rest, name=node.name))


def logit(context, node):  # type: ignore[no-untyped-def]
    """torch.logit(x, eps=None)"""
    x = _float(_get_inputs(context, node)[0])
    eps = _argument(context, node, 1, "eps")
    x = x if eps is None else mb.clip(x=x, alpha=float(eps), beta=1 - float(eps))
    odds = mb.real_div(x=x, y=mb.sub(x=1.0, y=x))
    context.add(mb.log(x=odds, epsilon=1e-45, name=node.name))


def xlogy(context, node):  # type: ignore[no-untyped-def]
    """torch.xlogy(x, y), 0 where x is"""
    x, y = (_float(var) for var in _get_inputs(context, node)[:2])
    product = mb.mul(x=x, y=mb.log(x=y, epsilon=1e-45))
    zero = mb.equal(x=x, y=0.0)
    context.add(mb.select(cond=zero, a=mb.mul(x=x, y=0.0), b=product, name=node.name))


def prod(context, node):  # type: ignore[no-untyped-def]
    """torch.prod(x), torch.prod(x, dim, keepdim)"""
    inputs = _get_inputs(context, node)
    whole = len(inputs) < 3 or inputs[2] is None
    axes = None if whole else [int(inputs[1].val)]
    keep = False if whole else bool(_argument(context, node, 2, "keepdim", False))
    context.add(mb.reduce_prod(x=inputs[0], axes=axes, keep_dims=keep, name=node.name))


def movedim(context, node):  # type: ignore[no-untyped-def]
    """torch.movedim(x, source, destination)"""
    x = _get_inputs(context, node)[0]
    given = (
        _argument(context, node, place, name) for place, name in ((1, "source"), (2, "destination"))
    )
    source, to = ([int(axis) % x.rank for axis in np.atleast_1d(axes)] for axes in given)
    order = [axis for axis in range(x.rank) if axis not in source]
    for place, axis in sorted(zip(to, source, strict=True)):
        order.insert(place, axis)
    context.add(mb.transpose(x=x, perm=order, name=node.name))


def aminmax(context, node):  # type: ignore[no-untyped-def]
    """torch.aminmax(x, dim=None, keepdim=False)"""
    x = _get_inputs(context, node)[0]
    axis = _argument(context, node, 1, "dim")
    keep = bool(_argument(context, node, 2, "keepdim", False))
    axes = None if axis is None else [int(axis)]
    names = node.outputs
    context.add(mb.reduce_min(x=x, axes=axes, keep_dims=keep), torch_name=names[0])
    context.add(mb.reduce_max(x=x, axes=axes, keep_dims=keep), torch_name=names[1])


def bucketize(context, node):  # type: ignore[no-untyped-def]
    """torch.bucketize(x, boundaries, right=False): how many boundaries are below x"""
    x, boundaries = (_float(var) for var in _get_inputs(context, node)[:2])
    right = bool(_argument(context, node, 3, "right", False))
    wide = mb.expand_dims(x=x, axes=[-1])
    below = mb.less_equal(x=boundaries, y=wide) if right else mb.less(x=boundaries, y=wide)
    count = mb.reduce_sum(x=mb.cast(x=below, dtype="int32"), axes=[-1], name=node.name)
    context.add(count)


def isin(context, node):  # type: ignore[no-untyped-def]
    """torch.isin(elements, test_elements, invert=False)"""
    x, tested = (_float(var) for var in _get_inputs(context, node)[:2])
    invert = bool(_argument(context, node, 3, "invert", False))
    tested = mb.reshape(x=tested, shape=[-1])
    same = mb.equal(x=mb.expand_dims(x=x, axes=[-1]), y=tested)
    count = mb.reduce_max(x=mb.cast(x=same, dtype="int32"), axes=[-1])
    found = (
        mb.equal(x=count, y=0, name=node.name) if invert else mb.equal(x=count, y=1, name=node.name)
    )
    context.add(found)


def unsafe_chunk(context, node):  # type: ignore[no-untyped-def]
    """x.unsafe_chunk(chunks, dim=0), into which torch.jit.trace takes LSTMCell and GRUCell apart"""
    x = _get_inputs(context, node)[0]
    chunks, axis = int(_argument(context, node, 1, "chunks")), _argument(context, node, 2, "dim", 0)
    total = x.shape[int(axis)]
    if not isinstance(total, (int, np.integer)):
        raise ValueError("chunks need an axis of one size: give samples of one size")
    size = -(-int(total) // chunks)
    sizes = [min(size, int(total) - start) for start in range(0, int(total), size)]
    parts = mb.split(x=x, split_sizes=sizes, axis=int(axis)) if len(sizes) > 1 else [x]
    context.add(list(parts), torch_name=node.name)


def _gates(context, node, count, whole):  # type: ignore[no-untyped-def]
    """What a cell computes of its input and of its hidden state, by gate; ``whole``: their sum."""
    x, hidden, weight, recurrent, bias, other = _get_inputs(context, node)[:6]
    state = hidden[0] if isinstance(hidden, (list, tuple)) else hidden
    both = [mb.linear(x=x, weight=weight, bias=bias)]
    both += [mb.linear(x=state, weight=recurrent, bias=other)]
    if whole:
        both = [mb.add(x=both[0], y=both[1])]
    return [mb.split(x=one, num_splits=count, axis=-1) if count > 1 else [one] for one in both]


def lstm_cell(context, node):  # type: ignore[no-untyped-def]
    """torch.nn.LSTMCell in TorchScript: gates i, f, g, o"""
    before = _get_inputs(context, node)[1][1]
    ((i, f, g, o),) = _gates(context, node, 4, True)
    kept = mb.mul(x=mb.sigmoid(x=f), y=before)
    cell = mb.add(x=kept, y=mb.mul(x=mb.sigmoid(x=i), y=mb.tanh(x=g)))
    hidden = mb.mul(x=mb.sigmoid(x=o), y=mb.tanh(x=cell))
    context.add(hidden, torch_name=node.outputs[0])
    context.add(cell, torch_name=node.outputs[1])


def gru_cell(context, node):  # type: ignore[no-untyped-def]
    """torch.nn.GRUCell in TorchScript: gates r, z, n"""
    before = _get_inputs(context, node)[1]
    (r, z, n), (r_state, z_state, n_state) = _gates(context, node, 3, False)
    reset = mb.sigmoid(x=mb.add(x=r, y=r_state))
    update = mb.sigmoid(x=mb.add(x=z, y=z_state))
    new = mb.tanh(x=mb.add(x=n, y=mb.mul(x=reset, y=n_state)))
    rest = mb.mul(x=update, y=mb.sub(x=before, y=new))
    context.add(mb.add(x=new, y=rest, name=node.name))


def rnn_tanh_cell(context, node):  # type: ignore[no-untyped-def]
    """torch.nn.RNNCell in TorchScript"""
    (((new,),)) = _gates(context, node, 1, True)
    context.add(mb.tanh(x=new, name=node.name))


def rnn_relu_cell(context, node):  # type: ignore[no-untyped-def]
    """torch.nn.RNNCell(nonlinearity="relu") in TorchScript"""
    (((new,),)) = _gates(context, node, 1, True)
    context.add(mb.relu(x=new, name=node.name))


def prelu(context, node):  # type: ignore[no-untyped-def]
    """torch.nn.functional.prelu(x, weight); Core ML's has weights that differ for rank 4 alone"""
    x, weight = _get_inputs(context, node)
    alike = weight.val is not None and np.unique(weight.val).size == 1
    if x.rank in (1, 4) or alike:
        return NotImplemented
    slope = mb.reshape(x=weight, shape=[-1] + [1] * (x.rank - 2))
    below = mb.mul(x=mb.minimum(x=x, y=0.0), y=slope)
    context.add(mb.add(x=mb.relu(x=x), y=below, name=node.name))
    return None


def length(context, node):  # type: ignore[no-untyped-def]
    """len(x) of a list, a tuple or a tensor"""
    (x,) = _get_inputs(context, node)
    if isinstance(x, (list, tuple)):
        context.add(mb.const(val=np.int32(len(x)), name=node.name))
    elif types.is_list(x.sym_type):
        context.add(mb.list_length(ls=x, name=node.name))
    else:
        size = mb.slice_by_index(x=mb.shape(x=x), begin=[0], end=[1], squeeze_mask=[True])
        context.add(mb.identity(x=size, name=node.name))


def contains(context, node):  # type: ignore[no-untyped-def]
    """``item in items``, of numbers that the program knows"""
    items, item = _get_inputs(context, node)
    items = [one.val for one in items] if isinstance(items, (list, tuple)) else items.val
    if items is None or item.val is None or any(one is None for one in items):
        raise ValueError("whether a list holds a number that depends on the inputs is not known")
    context.add(mb.const(val=bool(item.val in list(items)), name=node.name))


def negation(context, node):  # type: ignore[no-untyped-def]
    """``not x``"""
    context.add(mb.logical_not(x=_get_inputs(context, node)[0], name=node.name))


def identity(context, node):  # type: ignore[no-untyped-def]
    """``x is y``, where one is None"""
    x, y = _get_inputs(context, node)
    context.add(mb.const(val=x is y, name=node.name))


def difference(context, node):  # type: ignore[no-untyped-def]
    """``x is not y``, where one is None"""
    x, y = _get_inputs(context, node)
    context.add(mb.const(val=x is not y, name=node.name))


def uninitialized(context, node):  # type: ignore[no-untyped-def]
    """The value of a branch that raises, which nothing reads"""
    context.add(None, torch_name=node.name)


def taken_branch(context, node):  # type: ignore[no-untyped-def]
    """``if`` with a condition that shapes decide: one branch, without what the other raises"""
    (condition,) = _get_inputs(context, node)
    if condition.val is None:
        return NotImplemented
    block = node.blocks[0 if condition.val else 1]
    values = convert_block(context, block, []) if block.nodes or block.outputs else []
    for name, value in zip(node.outputs, values, strict=True):
        context.add(value, torch_name=name)
    return None


#: What conversions share, each before those that call it.
SHARED = (_argument, _float, _resized, _gates)

#: The conversions by the name of the PyTorch op.
CONVERSIONS: dict[str, Conversion] = {
    function.__name__: function
    for function in (
        *(alias, new_ones, diff, upsample_bicubic2d, _upsample_bicubic2d_aa, trunc, fmod, lerp),
        *(addcmul, addcdiv, hypot, logaddexp, isinf, isfinite, celu, hardshrink, softshrink),
        *(log_sigmoid, logit, xlogy, prod, movedim, aminmax, bucketize, isin, unsafe_chunk),
        *(lstm_cell, gru_cell, rnn_tanh_cell, rnn_relu_cell, prelu, contains, uninitialized),
    )
} | {
    # As TorchScript names them, which Python cannot.
    "len": length,
    "not": negation,
    "is": identity,
    "isnot": difference,
    "if": taken_branch,
    "data": alias,
    "unchecked_cast": alias,
}

#: Those that coremltools converts itself, but for some uses.
PARTLY = frozenset({"prelu", "if"})
