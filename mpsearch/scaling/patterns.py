"""Finds what :mod:`mpsearch.scaling.stable` can spell otherwise."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np

from .._ct import quiet

with quiet():
    from coremltools.converters.mil.mil import Operation, Program, Var

#: Masks below are made finite for FP16; the largest magnitude is left to softmax's logits.
_MASKED = -3e4
#: What may lie between a mask and softmax.
_BETWEEN = frozenset(
    [
        *("add", "select", "reshape", "expand_dims", "squeeze", "transpose", "concat", "tile"),
        *("slice_by_index", "slice_by_size", "split"),
    ]
)


#: How an op is spelled otherwise (:func:`mpsearch.scaling.stable.rewrite`).
Kind = Literal["softplus", "logsumexp", "log_softmax", "finite_mask"]


class Rewrite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An op that is spelled otherwise: by name and type, and how (``kind``)."""

    op: str
    type: str
    kind: Kind


def rewrites(program: Program) -> list[Rewrite]:
    """What can be spelled otherwise in the outer block of a program, in execution order."""
    (function,) = program.functions.values()
    kinds = ((op, _kind(op)) for op in function.operations)
    return [Rewrite(op.name, op.op_type, kind) for op, kind in kinds if kind is not None]


def _kind(op: Operation) -> Kind | None:
    if op.op_type == "softplus":
        return "softplus"
    if op.op_type == "reduce_log_sum_exp":
        return "logsumexp"
    if op.op_type == "log" and op.x.op is not None and op.x.op.op_type == "softmax":
        return "log_softmax"
    return "finite_mask" if _masks(op) else None


def _masks(op: Operation) -> bool:
    """Whether an op brings in a mask that FP16 cannot hold, and only softmax sees it."""
    if op.op_type not in ("add", "mul", "select"):
        return False
    values = [v.val for v in op.inputs.values() if isinstance(v, Var) and v.val is not None]
    floats = [np.asarray(v) for v in values if np.asarray(v).dtype == np.float32]
    beyond = any((v[np.isfinite(v)] < _MASKED).any() for v in floats)
    if not beyond or (op.op_type == "mul" and not _zero_or_one(op)):
        return False
    return _only_softmax(op.outputs[0])


def _zero_or_one(op: Operation) -> bool:
    """Whether the factor that is no constant is a truth value, or one taken from 1."""
    (var,) = (v for v in (op.x, op.y) if v.val is None)
    made: Any = var.op
    if made is not None and made.op_type == "sub" and made.x.val is not None:
        made = made.y.op if np.all(np.asarray(made.x.val) == 1) else None
    while made is not None and made.op_type in _BETWEEN - {"add", "select", "concat"}:
        made = made.x.op
    return made is not None and made.op_type == "cast"


def _only_softmax(var: Var) -> bool:
    readers = var.child_ops
    return bool(readers) and not var.consuming_blocks and all(map(_ends_in_softmax, readers))


def _ends_in_softmax(op: Operation) -> bool:
    if op.op_type == "softmax":
        return True
    return op.op_type in _BETWEEN and all(map(_only_softmax, op.outputs))
