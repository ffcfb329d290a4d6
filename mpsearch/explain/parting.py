"""Where a converted program parts from the PyTorch model, all in FP32."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..evaluation.incremental import Incremental
from ..program.graph import Node
from ..source.prepare import Prepared
from ..source.values import intermediates


def parting(prepared: Prepared, engine: Incremental, limit: float) -> Node | None:
    """The first op whose result in all-FP32 is not what the PyTorch model computes there."""
    if prepared.torch_model is None:
        return None
    for sample, given in enumerate(prepared.given):
        precast = prepared.precast
        values = intermediates(prepared.torch_model, given, precast.kind, precast.frozen)
        wanted = _counterparts(engine.nodes, values)
        found: list[Node] = []

        def see(
            node: Node,
            results: tuple[Any, ...],
            wanted: dict[str, Tensor] = wanted,
            found: list[Node] = found,
        ) -> None:
            if not found and node.name in wanted and _differs(results[0], wanted[node.name], limit):
                found.append(node)

        engine.trace(sample, see)
        if found:
            return found[0]
    return None


def where_of(prepared: Prepared, node: Node) -> str:
    """An op in words, with the line of PyTorch code it comes from."""
    line = {op.name: op.line for op in prepared.ops}.get(node.name)
    where = f"{node}, {line}" if line else str(node)
    if node.op_type == "inverse":
        where += " (coremltools adds 1e-4 to x in 1 / x, and none in torch.ones_like(x) / x)"
    return where


def _counterparts(nodes: Sequence[Node], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Op name -> the PyTorch value that it stands for.

    What coremltools lowers to several ops has them named after the one value with a suffix each;
    the last of them stands for it.
    """
    found: dict[str, Tensor] = {}
    last: dict[str, str] = {}
    for node in nodes:
        for name in (node.result, node.name):
            if name in values:
                found[node.name] = values[name]
                break
        else:
            parts = node.name.split("_")
            for end in range(len(parts) - 1, 0, -1):
                if (prefix := "_".join(parts[:end])) in values:
                    last[prefix] = node.name
                    break
    for prefix, name in last.items():
        found.setdefault(name, values[prefix])
    return found


def _differs(value: Any, wanted: Tensor, limit: float) -> bool:
    """Whether a float value is further than ``limit`` from another, in relative L2."""
    if not isinstance(value, Tensor) or not wanted.is_floating_point():
        return False
    if value.shape != wanted.shape or not value.numel():
        return False  # a layout of coremltools' own
    size = float(torch.linalg.vector_norm(wanted.double()))
    off = float(torch.linalg.vector_norm(value.double().cpu() - wanted.double().cpu()))
    return off > limit * size if math.isfinite(size) else False
