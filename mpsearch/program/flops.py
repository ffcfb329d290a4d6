"""Floating-point operations of ops."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .graph import Node, walk

#: What it takes to run an op at all, in floating-point operations; where it is run once that is
#: little beside what it computes, or beside what a search takes.
_STEP = 5e5


def looped(nodes: Sequence[Node], sizes: Sequence[int]) -> float:
    """What it takes to run the ops inside of loops again and again, in floating-point operations.

    How often is not written in a program: at most as often as the longest axis of its inputs
    (``sizes``) says, as recurrent networks do.
    """
    loops = [node for node in walk(list(nodes)) if node.op_type == "while_loop"]
    steps = sum(1 for loop in loops for block in loop.blocks for _ in walk(block.nodes))
    return _STEP * steps * max(sizes, default=1)


def flops(op_type: str, inputs: Mapping[str, Any], outputs: Sequence[tuple[int, ...]]) -> int:
    """Floating-point operations of one op; a multiplication and an addition count two.

    ``inputs`` maps parameter names to shapes. Products are counted by their dimensions, everything
    else as one operation per element of the output. Symbolic sizes (-1) count as one.
    """
    size = sum(math.prod(abs(n) for n in shape) for shape in outputs)
    if op_type in ("conv", "conv_quantized", "conv_transpose") and inputs.get("weight"):
        return 2 * size * math.prod(inputs["weight"][1:])
    if op_type == "linear" and inputs.get("weight"):
        return 2 * size * inputs["weight"][-1]
    if op_type == "matmul" and inputs.get("x"):
        return 2 * size * abs(inputs["x"][-1])
    if op_type == "scaled_dot_product_attention" and inputs.get("key") and inputs.get("query"):
        return 4 * math.prod(map(abs, inputs["query"])) * abs(inputs["key"][-2])
    if op_type in ("lstm", "gru", "rnn") and inputs.get("weight_ih") and inputs.get("x"):
        steps, batch = (abs(n) for n in inputs["x"][:2])
        weights = (math.prod(inputs[k]) for k in ("weight_ih", "weight_hh"))
        return 2 * steps * batch * sum(weights)
    return size
