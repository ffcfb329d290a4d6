"""The tensors by whose elements something is divided: where one is 0, the result is infinite."""

from __future__ import annotations

import numpy as np

from .graph import Constant, Function, Node, Ref

#: Inputs by which ops divide, or of which they take the logarithm.
_DIVIDE = {("real_div", "y"), ("inverse", "x"), ("rsqrt", "x"), ("log", "x")}
#: Ops whose results have a 0 wherever an input has one, in place.
_KEEP = frozenset(["mul", "square", "sqrt", "abs", "real_div"])
#: Ops whose results are values of ``x``.
_MOVE = frozenset(
    [
        *("reshape", "transpose", "squeeze", "expand_dims", "split", "tile", "identity"),
        *("slice_by_index", "slice_by_size"),
    ]
)


def divisors(function: Function, vanishes: float) -> dict[int, frozenset[str]]:
    """Slots of which no element may become 0, with the names of the ops that must not take it as 0.

    An epsilon larger than ``vanishes``, what a format rounds to 0, takes care of that.
    """
    found: dict[int, set[str]] = {}
    for node in reversed(function.nodes):
        kept = node.op_type in _KEEP | _MOVE and not found.keys().isdisjoint(node.outputs)
        for name, source in node.fp32.inputs.items():
            if not isinstance(source, Ref):
                continue
            divides = (node.op_type, name) in _DIVIDE and _epsilon(node) <= vanishes
            if divides or (kept and (node.op_type in _KEEP or name == "x")):
                found.setdefault(source.slot, set()).add(node.name)
    return {slot: frozenset(names) for slot, names in found.items()}


def _epsilon(node: Node) -> float:
    source = node.fp32.inputs.get("epsilon")
    return float(np.max(source.load())) if isinstance(source, Constant) else 0.0
