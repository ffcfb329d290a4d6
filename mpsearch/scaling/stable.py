"""Spells ops of a MIL program so that their inner steps stay within FP16's range.

What stands below the imports is copied into ``rescale.py`` as it is, so that it needs no more than
they give.
"""

from __future__ import annotations

import math

import numpy as np

from .._ct import quiet

with quiet():
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 - its usual name


def rewrite(program, rewrites):  # type: ignore[no-untyped-def]
    """Replace ops by others that compute the same, in place.

    ``rewrites`` has a dict for each op: its name (``op``), ``type``, and the ``kind``:
    ``softplus``, relu(x) + log(1 + exp(-|x|)); ``logsumexp`` and ``log_softmax``, with the largest
    value taken out first; ``softmax`` for exponentials divided by their sum; ``finite_mask``,
    constants below -30000 that only softmax sees become -30000, or -40000 where something is added,
    and the sum is at least -30000; ``row_mask``, the mask ``input`` of a sum before softmax less
    its largest value in each row; ``key_bias``, the bias of ``channels`` (from, to) set to 0, that
    only keys of attention see, whose scores it moves all alike; ``exp`` and ``log`` with the power
    of two ``exponent`` taken out, exp(x - k ln 2) 2^k and log(x 2^-k) + k ln 2.

    Raises ValueError where the program has no such op.
    """
    (function,) = program.functions.values()
    ops = {op.name: op for op in function.operations}
    with function:
        for entry in rewrites:
            op = ops.get(entry["op"])
            if op is None or op.op_type != entry["type"]:
                raise ValueError(f"there is no {entry['type']} {entry['op']!r}")
            known, scopes = set(function.operations), dict(op.scopes)
            more = {k: entry[k] for k in ("exponent", "channels", "input") if entry.get(k)}
            _REWRITES[entry["kind"]](function, op, **more)  # type: ignore[operator]
            for made in set(function.operations) - known:
                made.scopes = dict(scopes)


def _builder(op):  # type: ignore[no-untyped-def]
    """Makes ops before ``op``, named after it."""
    count = [0]

    def make(kind, **inputs):  # type: ignore[no-untyped-def]
        count[0] += 1
        name = f"{op.name}_{kind}_{count[0]}"
        for key, value in inputs.items():
            if isinstance(value, float):
                inputs[key] = mb.const(val=np.float32(value), name=f"{name}_{key}", before_op=op)
        return getattr(mb, kind)(**inputs, name=name, before_op=op)

    return make


def _replace(function, op, new):  # type: ignore[no-untyped-def]
    (old,) = op.outputs
    name = old.name
    function.replace_uses_of_var_after_op(anchor_op=op, old_var=old, new_var=new)
    function.remove_ops([op])
    new.name = new.op.name = name


def _softplus(function, op):  # type: ignore[no-untyped-def]
    make, x = _builder(op), op.x
    size = make("mul", x=make("abs", x=x), y=-1.0)
    small = make("log", x=make("add", x=make("exp", x=size), y=1.0), epsilon=1e-30)
    _replace(function, op, make("add", x=make("relu", x=x), y=small))


def _without_peak(make, x, axes):  # type: ignore[no-untyped-def]
    """x minus its largest value, the logarithm of the sum of its exponentials, and that value."""
    peak = make("reduce_max", x=x, axes=axes, keep_dims=True)
    rest = make("sub", x=x, y=peak)
    total = make("reduce_sum", x=make("exp", x=rest), axes=axes, keep_dims=True)
    return rest, make("log", x=total, epsilon=1e-30), peak


def _logsumexp(function, op):  # type: ignore[no-untyped-def]
    make = _builder(op)
    axes = [int(axis) for axis in op.axes.val] if op.axes is not None else range(op.x.rank)
    _, log, peak = _without_peak(make, op.x, list(axes))
    whole = make("add", x=log, y=peak)
    keep = op.keep_dims is not None and bool(op.keep_dims.val)
    _replace(function, op, whole if keep else make("squeeze", x=whole, axes=list(axes)))


def _log_softmax(function, op):  # type: ignore[no-untyped-def]
    make, softmax = _builder(op), op.x.op
    rest, log, _ = _without_peak(make, softmax.x, [int(softmax.axis.val)])
    _replace(function, op, make("sub", x=rest, y=log))


def _softmax(function, op):  # type: ignore[no-untyped-def]
    make, x, axes = _builder(op), op.x.op.x, [int(axis) for axis in np.ravel(op.y.op.axes.val)]
    if len(axes) == 1:
        return _replace(function, op, make("softmax", x=x, axis=axes[0]))
    rest = make("sub", x=x, y=make("reduce_max", x=x, axes=axes, keep_dims=True))
    above = make("exp", x=rest)
    below = make("reduce_sum", x=above, axes=axes, keep_dims=True)
    return _replace(function, op, make("real_div", x=above, y=below))


def _exp(function, op, exponent):  # type: ignore[no-untyped-def]
    make = _builder(op)
    less = make("sub", x=op.x, y=exponent * math.log(2))
    _replace(function, op, make("mul", x=make("exp", x=less), y=2.0**exponent))


def _log(function, op, exponent):  # type: ignore[no-untyped-def]
    make = _builder(op)
    epsilon = float(op.epsilon.val) * 2.0**-exponent
    log = make("log", x=make("mul", x=op.x, y=2.0**-exponent), epsilon=max(epsilon, 1e-45))
    _replace(function, op, make("add", x=log, y=exponent * math.log(2)))


def _finite_mask(function, op):  # type: ignore[no-untyped-def]
    summed = _sums_before_softmax(op)
    least, changed = -4e4 if summed else -3e4, {}
    for name, var in op.inputs.items():
        value = None if isinstance(var, (list, tuple)) else var.val
        if value is not None and np.asarray(value).dtype == np.float32:
            finite = np.where(np.isfinite(value), np.maximum(value, least), value)
            new = np.float32(finite) if np.ndim(value) == 0 else finite.astype(np.float32)
            changed[name] = mb.const(val=new, name=f"{op.name}_{name}_finite", before_op=op)
    op.set_inputs(**changed)
    for softmax in summed:
        name = f"{softmax.name}_finite"
        if softmax.x.op.name != name:
            by = mb.const(val=np.float32(-3e4), name=f"{name}_by", before_op=softmax)
            by.op.scopes = dict(op.scopes)
            finite = mb.maximum(x=softmax.x, y=by, name=name, before_op=softmax)
            finite.op.scopes = dict(op.scopes)
            softmax.set_inputs(x=finite)


def _row_mask(function, op, input):  # type: ignore[no-untyped-def]
    mask = op.inputs[input]
    name = f"{mask.name}_rows"
    known = [other for other in function.operations if other.name == name]
    if not known:
        peak = mb.reduce_max(
            x=mask, axes=[-1], keep_dims=True, name=f"{name}_largest", before_op=op
        )
        known = [mb.sub(x=mask, y=peak, name=name, before_op=op).op]
    op.set_inputs(**{input: known[0].outputs[0]})


def _key_bias(function, op, channels):  # type: ignore[no-untyped-def]
    name = "bias" if op.op_type != "add" else "x" if op.x.val is not None else "y"
    bias = np.array(op.inputs[name].val)
    for start, end in channels:
        bias[..., start:end] = 0
    without = mb.const(val=bias, name=f"{op.name}_{name}_without_keys", before_op=op)
    op.set_inputs(**{name: without})


def _sums_before_softmax(op):  # type: ignore[no-untyped-def]
    """The softmax ops that see what ``op`` computes with something added to it."""
    found, todo = [], [(op, op.op_type == "add")]
    while todo:
        one, added = todo.pop()
        for reader in (reader for var in one.outputs for reader in var.child_ops):
            if reader.op_type != "softmax":
                todo.append((reader, added or reader.op_type == "add"))
            elif added and reader not in found:
                found.append(reader)
    return found


_REWRITES = {
    "softplus": _softplus,
    "logsumexp": _logsumexp,
    "log_softmax": _log_softmax,
    "softmax": _softmax,
    "finite_mask": _finite_mask,
    "row_mask": _row_mask,
    "key_bias": _key_bias,
    "exp": _exp,
    "log": _log,
}
