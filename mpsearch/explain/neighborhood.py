"""What stands around an op: the questions that :mod:`mpsearch.explain.matches` asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..program.candidates import CandidateOp
from ..program.graph import Constant, Function, Node, Ref, Source

#: How many ops may lie between the parts of a pattern.
HOPS = 6
#: What moves or repeats elements, and changes none.
SHAPES = frozenset(["cast", "expand_dims", "identity", "reshape", "squeeze", "tile", "transpose"])


class Graph:
    """The outer block, to be asked what stands around a node."""

    def __init__(
        self,
        function: Function,
        ops: Sequence[CandidateOp],
        verdicts: Mapping[int, str],
        largest: Mapping[int, float],
    ) -> None:
        self.ops = ops
        self.verdicts = verdicts
        self._largest = largest
        self._producer = {slot: node for node in function.nodes for slot in node.outputs}
        self._readers: dict[int, list[Node]] = {}
        for node in function.nodes:
            for slot in reads(node):
                self._readers.setdefault(slot, []).append(node)

    def source(self, node: Node, name: str) -> Node | None:
        """The node that writes one input of a node."""
        source = node.fp32.inputs.get(name)
        return self._producer.get(source.slot) if isinstance(source, Ref) else None

    def sources(self, node: Node) -> list[Node]:
        """The nodes that write what a node reads."""
        return [self._producer[s] for s in reads(node) if s in self._producer]

    def readers(self, node: Node) -> list[Node]:
        """The nodes that read what a node writes."""
        return [r for slot in node.outputs for r in self._readers.get(slot, ())]

    def path(
        self, start: Node, through: frozenset[str], end: Callable[[Node], bool]
    ) -> list[Node] | None:
        """The nodes after ``start`` to the nearest where ``end`` holds."""
        paths = [[start]]
        for _ in range(HOPS):
            longer = [[*p, r] for p in paths for r in self.readers(p[-1])]
            for path in longer:
                if end(path[-1]):
                    return path[1:]
            paths = [p for p in longer if p[-1].op_type in through][:64]
        return None

    def trail(self, slot: int) -> tuple[list[Node], int]:
        """The nodes that only move the elements of a slot or scale them all, and what they take."""
        nodes: list[Node] = []
        while (node := self._producer.get(slot)) is not None:
            slots = list(reads(node))
            scales = (by := scaled_by(node)) is not None and by.size == 1
            if len(slots) != 1 or not (scales or node.op_type in SHAPES):
                break
            nodes.append(node)
            (slot,) = slots
        return nodes, slot

    def origin(self, slot: int) -> int:
        """What the nodes of :meth:`trail` take."""
        return self.trail(slot)[1]

    def made(self, slot: int) -> Node | None:
        """The node that made a slot."""
        return self._producer.get(slot)

    def sizes(self, slot: int) -> tuple[Any, ...] | None:
        """The shape of a value; None where it is not that of a candidate."""
        node = self._producer.get(slot)
        if node is None or node.candidate is None:
            return None
        return self.ops[node.candidate].output_shapes[node.outputs.index(slot)]

    def dims(self, node: Node) -> list[int]:
        """The axes that a reduction takes."""
        axes = constant(node, "axes")
        if axes is None:
            rank = len(self.sizes(next(reads(node))) or (0,))
            return list(range(-rank, 0))
        return [int(axis) for axis in np.ravel(axes)]

    def dim(self, node: Node) -> str:
        """The axes that a reduction takes, as PyTorch's ``dim`` is written."""
        dims = self.dims(node)
        return str(dims[0] if len(dims) == 1 else tuple(dims))

    def shape(self, source: Source | int) -> str:
        """The shape of a value, as it is written in a comment."""
        slot = source.slot if isinstance(source, Ref) else source
        sizes = self.sizes(slot) if isinstance(slot, int) else None
        return "(as it is)" if sizes is None else str(sizes)

    def verdict(self, node: Node) -> str:
        """Why FP16 breaks a node; empty where it does not."""
        return self.verdicts.get(-1 if node.candidate is None else node.candidate, "")

    def largest(self, node: Node) -> float:
        """The largest magnitude of what a node computes; 0 where not known."""
        return self._largest.get(-1 if node.candidate is None else node.candidate, 0.0)


@dataclass(frozen=True, slots=True)
class Terms:
    """A sum written as several ops: what makes its terms, and the nodes from there to the sum."""

    leaves: list[Node]
    between: list[Node]


def terms_of(graph: Graph, node: Node) -> Terms | None:
    """What is added up in ``node``, or in what it takes; None where it is more than a few ops."""
    terms, slots = Terms([], []), list(reads(node))
    while slots:
        nodes, slot = graph.trail(slots.pop(0))
        maker = graph.made(slot)
        if maker is None or len(terms.between) > HOPS:
            return None
        terms.between.extend(nodes)
        if maker.op_type in ("add", "sub"):
            terms.between.append(maker)
            slots = [*reads(maker), *slots]
            if len(list(reads(maker))) + len(list(scalars(maker))) != 2:
                return None
        else:
            terms.leaves.append(maker)
    return terms


def of_type(*types: str) -> Callable[[Node], bool]:
    return lambda node: node.op_type in types


def factors_of(node: Node) -> list[int]:
    """The slots of the two factors of a product."""
    slots = list(reads(node))
    if is_square(node):
        return slots[:1] * 2
    return slots if node.op_type == "mul" else []


def scaled_by(node: Node) -> np.ndarray | None:
    """The constant that a node multiplies by."""
    value = next((v for name in ("y", "x") if (v := constant(node, name)) is not None), None)
    if value is None or node.op_type not in ("mul", "real_div") or not list(reads(node)):
        return None
    value = np.asarray(value, dtype=np.float64)
    if node.op_type == "mul":
        return value
    return None if constant(node, "y") is None else 1 / value


def reads(node: Node) -> Iterator[int]:
    for source in node.fp32.inputs.values():
        for item in source if isinstance(source, list) else [source]:
            if isinstance(item, Ref):
                yield item.slot


def before(graph: Graph, node: Node, hops: int) -> list[Node]:
    """A node and what comes before it, the nearest first."""
    found, edge = [node], [node]
    for _ in range(hops):
        edge = [s for n in edge for s in graph.sources(n) if s not in found]
        found += list(dict.fromkeys(edge))
    return found


def is_square(node: Node) -> bool:
    if node.op_type == "square":
        return True
    if node.op_type == "mul":
        x, y = node.fp32.inputs.get("x"), node.fp32.inputs.get("y")
        return isinstance(x, Ref) and isinstance(y, Ref) and x.slot == y.slot
    return node.op_type == "pow" and constant(node, "y") == 2


def constant(node: Node, name: str) -> Any:
    source = node.fp32.inputs.get(name)
    if not isinstance(source, Constant):
        return None
    value = np.asarray(source.load())
    return value.item() if value.size == 1 and name != "axes" else value


def scalars(node: Node) -> Iterator[float]:
    """The constant numbers that an op takes as operands."""
    for name in ("x", "y"):
        value = constant(node, name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield float(value)


def constant_peak(node: Node) -> float:
    """The largest magnitude among an op's constant operands."""
    values = [constant(node, name) for name in ("x", "y", "a", "b")]
    sizes = [
        np.abs(np.asarray(v, dtype=np.float64)).max(initial=0.0)
        for v in values
        if v is not None and np.asarray(v).dtype.kind == "f"
    ]
    return float(max(sizes, default=0.0))
