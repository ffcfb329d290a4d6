"""The program as the executor sees it: plain data, free of coremltools.

A :class:`Function` is a list of :class:`Node` in execution order. Values live in numbered slots,
unique within a function, nested blocks included. States are ordinary values here: reading one
reads the slot that last wrote it, which keeps every node a pure function of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Ref:
    """The value in a slot; ``narrow`` rounds it to FP16 on the way in."""

    slot: int
    narrow: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A constant as MIL holds it: an array, a scalar, a string or a list of strings.

    ``load`` is called each time the value is needed, so that what is decompressed or cast for
    one run need not stay in memory. ``narrow`` marks the FP16 form of an FP32 array; ``made`` may
    hold that form once, where it was made on the way here, for the first one to use it.
    """

    name: str
    load: Callable[[], Any]
    narrow: bool = False
    made: list[np.ndarray] = field(default_factory=list)

    @staticmethod
    def of(value: Any, name: str = "") -> Constant:
        return Constant(name, lambda: value)


Source = Ref | Constant | list[Any] | None


@dataclass(frozen=True, slots=True)
class Form:
    """What a node takes and gives in one precision: its inputs and the dtypes of its outputs."""

    inputs: dict[str, Source]
    out_dtypes: tuple[str, ...]


@dataclass(slots=True, eq=False)
class Block:
    """A nested block of a control-flow node: input slots, nodes, outputs."""

    inputs: list[int]
    nodes: list[Node]
    outputs: list[Source]


@dataclass(slots=True, eq=False)
class Node:
    """One MIL operation.

    ``fp32`` is the op as it stands in the program. ``fp16``, where coremltools' cast pass would
    change the op, is what the pass makes of it. ``candidate`` is the op's place in the precision
    vector. ``result`` is the name of its first output, which outlives passes that rename ops.
    """

    op_type: str
    name: str
    layer: str
    fp32: Form
    outputs: list[int]
    result: str = ""
    fp16: Form | None = None
    candidate: int | None = None
    blocks: list[Block] = field(default_factory=list)

    def __str__(self) -> str:
        where = f" from layer {self.layer}" if self.layer else ""
        return f"op {self.name!r} of type {self.op_type}{where}"


@dataclass(slots=True, eq=False)
class Function:
    """A MIL function: named inputs, states and outputs around a list of nodes."""

    inputs: dict[str, int]
    states: dict[str, int]
    nodes: list[Node]
    outputs: dict[str, Source]
    state_outputs: dict[str, Source]


def walk(nodes: list[Node]) -> Iterator[Node]:
    """Every node, those of nested blocks before the node that owns them."""
    for node in nodes:
        for block in node.blocks:
            yield from walk(block.nodes)
        yield node


def refs(source: Source) -> Iterator[Ref]:
    """The references in a source."""
    if isinstance(source, Ref):
        yield source
    elif isinstance(source, list):
        for item in source:
            yield from refs(item)


def slots_read(node: Node) -> list[int]:
    """The slots that a node reads, those captured by its blocks included, in order, once each."""
    seen = {ref.slot: None for source in node.fp32.inputs.values() for ref in refs(source)}
    for block in node.blocks:
        inner = set(block.inputs)
        for child in block.nodes:
            for slot in slots_read(child):
                if slot not in inner:
                    seen.setdefault(slot)
            inner.update(child.outputs)
        for source in block.outputs:
            if isinstance(source, Ref) and source.slot not in inner:
                seen.setdefault(source.slot)
    return list(seen)
