"""Finds what :mod:`mpsearch.scaling.stable` can spell otherwise."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from .._ct import quiet

with quiet():
    from coremltools.converters.mil.mil import Operation, Program, Var, types

#: Masks below are made finite for FP16; the largest magnitude is left to softmax's logits.
_MASKED = -3e4
#: What may lie between a mask and softmax.
_BETWEEN = frozenset(
    [
        *("add", "select", "reshape", "expand_dims", "squeeze", "transpose", "concat", "tile"),
        *("slice_by_index", "slice_by_size", "split"),
    ]
)


#: How an op is rewritten (:func:`mpsearch.scaling.stable.rewrite`).
Kind = Literal[
    "softplus",
    "logsumexp",
    "log_softmax",
    "softmax",
    "finite_mask",
    "exp",
    "log",
    "row_mask",
    "key_bias",
]


#: What kinds take besides the op.
_TAKES: dict[str, set[str]] = {
    "exp": {"exponent"},
    "log": {"exponent"},
    "row_mask": {"input"},
    "key_bias": {"channels"},
}


class Rewrite(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An op that is rewritten: by name and type, and how (``kind``).

    ``exponent`` is the power of two that is taken out of an exponential or a logarithm, ``input``
    the mask of a sum, ``channels`` those (from, to) whose bias is left out.
    """

    op: str
    type: str
    kind: Kind
    exponent: Annotated[int, msgspec.Meta(ge=-80, le=80)] = 0
    input: str = ""
    channels: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        given = {n for n in ("exponent", "input", "channels") if getattr(self, n)}
        if given != _TAKES.get(self.kind, set()):
            wanted = ", ".join(_TAKES.get(self.kind, ())) or "nothing more"
            raise ValueError(
                f"{self.kind} takes {wanted}, not {', '.join(sorted(given)) or 'that'}"
            )


def rewrites(
    program: Program,
    truths: Collection[str],
    exponents: Mapping[str, int],
    attention: Iterable[Rewrite] = (),
) -> list[Rewrite]:
    """What can be rewritten in the outer block of a program, in execution order.

    Parameters
    ----------
    truths
        Inputs of the program that are nothing but 0 and 1.
    exponents
        For exponentials and logarithms by name: which power of two is to be taken out.
    attention
        What :mod:`mpsearch.scaling.attention` has found.
    """
    others = {rewrite.op: rewrite for rewrite in attention}
    (function,) = program.functions.values()
    found = []
    within = {op.x.op.name for op in function.operations if _by_hand(op)}
    for op in function.operations:
        kind = None if op.name in within else _kind(op, frozenset(truths))
        if kind in ("exp", "log"):
            if exponent := exponents.get(op.name, 0):
                found.append(Rewrite(op.name, op.op_type, kind, exponent))
        elif kind is not None:
            found.append(Rewrite(op.name, op.op_type, kind))
        if op.name in others:
            found.append(others[op.name])
    return found


def unfit(program: Program, rewrites: Iterable[Rewrite]) -> Rewrite | None:
    """The first that a program has no op for."""
    (function,) = program.functions.values()
    every = frozenset(function.inputs)
    possible = {(op.name, op.op_type, _kind(op, every)) for op in function.operations}
    return next((r for r in rewrites if (r.op, r.type, r.kind) not in possible), None)


def _kind(op: Operation, truths: frozenset[str]) -> Kind | None:
    if op.op_type == "softplus":
        return "softplus"
    if op.op_type == "reduce_log_sum_exp":
        return "logsumexp"
    if op.op_type == "log" and op.x.op is not None and op.x.op.op_type == "softmax":
        return "log_softmax"
    if _by_hand(op):
        return "softmax"
    if op.op_type in ("exp", "log"):
        return "exp" if op.op_type == "exp" else "log"
    return "finite_mask" if _masks(op, truths) else None


def _by_hand(op: Operation) -> bool:
    """Whether an op divides exponentials, which nothing else reads, by their sum along axes."""
    if op.op_type != "real_div" or op.x.op is None or op.y.op is None:
        return False
    above, below = op.x.op, op.y.op
    if (above.op_type, below.op_type) != ("exp", "reduce_sum") or below.x is not op.x:
        return False
    axes, kept = below.axes, below.keep_dims
    along = axes is not None and kept is not None and bool(kept.val)
    return along and set(op.x.child_ops) == {op, below} and not op.x.consuming_blocks


def _masks(op: Operation, truths: frozenset[str]) -> bool:
    """Whether an op brings in a mask that FP16 cannot hold, and only softmax sees it."""
    if op.op_type not in ("add", "mul", "select"):
        return False
    values = [v.val for v in op.inputs.values() if isinstance(v, Var) and v.val is not None]
    floats = [np.asarray(v) for v in values if np.asarray(v).dtype == np.float32]
    beyond = any((v[np.isfinite(v)] < _MASKED).any() for v in floats)
    if not beyond or (op.op_type == "mul" and not _is_truth(_factor(op), truths)):
        return False
    return _only_softmax(op.outputs[0])


def _factor(op: Operation) -> Var:
    """The factor of a product with a constant that is no constant."""
    return op.x if op.x.val is None else op.y


def _is_truth(var: Var, truths: frozenset[str]) -> bool:
    """Whether a tensor is nothing but 0 and 1: truth values, 1 less them, their products."""
    if var.val is not None:
        return bool(np.isin(var.val, (0, 1)).all())
    made: Any = var.op
    if made is None:
        return var.name in truths
    if made.op_type == "cast":
        return bool(types.is_bool(made.x.dtype)) or _is_truth(made.x, truths)
    if made.op_type == "sub":
        one = made.x.val is not None and bool(np.all(made.x.val == 1))
        return one and _is_truth(made.y, truths)
    if made.op_type in ("mul", "maximum", "minimum"):
        return _is_truth(made.x, truths) and _is_truth(made.y, truths)
    return made.op_type in _BETWEEN - {"add", "select", "concat"} and _is_truth(made.x, truths)


def _only_softmax(var: Var) -> bool:
    readers = var.child_ops
    return bool(readers) and not var.consuming_blocks and all(map(_last_is_softmax, readers))


def _last_is_softmax(op: Operation) -> bool:
    if op.op_type == "softmax":
        return True
    return op.op_type in _BETWEEN and all(map(_only_softmax, op.outputs))
