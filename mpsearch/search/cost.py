"""What keeping ops in FP32 costs: ops, casts, bytes of weights, floating-point operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from ..program.candidates import CandidateOp
from ..program.graph import Function, Node, Ref, slots_read, walk
from ..program.precision import Precision

_FP32, _FREE = -1, -2


def op_cost(op: CandidateOp, objective: str) -> float:
    """The cost of one op in FP32 by itself, in one of :data:`mpsearch.options.MINIMIZED`."""
    if objective == "bytes":
        return float(op.weight_bytes)
    if objective == "flops":
        return float(op.flops)
    return 1.0


class Casts:
    """Counts the casts between FP16 and FP32 that a precision needs.

    A value is cast once for all its readers of the other precision, as coremltools' passes leave
    it. Inputs and outputs are FP32 unless the program casts them itself.
    """

    def __init__(self, function: Function) -> None:
        nodes = list(walk(function.nodes))
        self._producer: dict[int, int] = dict.fromkeys(function.inputs.values(), _FP32)
        self._readers: dict[int, set[int]] = {}
        for node in nodes:
            kind = self._kind(node)
            for slot, dtype in zip(node.outputs, node.fp32.out_dtypes, strict=True):
                self._producer[slot] = kind if dtype == "fp32" else _FREE
            if not node.blocks:
                for slot in slots_read(node):
                    self._readers.setdefault(slot, set()).add(kind)
        for source in function.outputs.values():
            if isinstance(source, Ref):
                self._readers.setdefault(source.slot, set()).add(_FP32)

    @staticmethod
    def _kind(node: Node) -> int:
        if node.candidate is not None:
            return node.candidate
        # What takes no part in the choice, but for casts that are there anyway.
        return _FREE if node.op_type == "cast" or "fp32" not in node.fp32.out_dtypes else _FP32

    def tensors(self) -> list[tuple[int, list[int]]]:
        """Each tensor that may need a cast: the candidate that makes it, and those that read it.

        -1 stands for what is FP32 whatever is chosen.
        """
        found = []
        for slot, producer in self._producer.items():
            readers = sorted(kind for kind in self._readers.get(slot, ()) if kind != _FREE)
            if producer != _FREE and readers:
                found.append((producer, readers))
        return found

    def reads(self) -> dict[int, set[int]]:
        """Candidate -> the candidates whose results it reads."""
        found: dict[int, set[int]] = {}
        for slot, producer in self._producer.items():
            for reader in self._readers.get(slot, ()) if producer >= 0 else ():
                if reader >= 0:
                    found.setdefault(reader, set()).add(producer)
        return found

    def neighbors(self) -> dict[int, set[int]]:
        """Candidate -> the candidates that write what it reads, or read what it writes."""
        found: dict[int, set[int]] = {}
        for reader, producers in self.reads().items():
            for producer in producers:
                found.setdefault(producer, set()).add(reader)
                found.setdefault(reader, set()).add(producer)
        return found

    def islands(self, precision: Precision) -> list[list[int]]:
        """The connected groups of FP32 ops, each in execution order."""
        kept = list(precision)
        place = {op: k for k, op in enumerate(kept)}
        pairs = [(a, b) for a, near in self.neighbors().items() for b in near if a in precision]
        linked = [(place[a], place[b]) for a, b in pairs if b in precision]
        rows, columns = zip(*linked, strict=True) if linked else ((), ())
        graph = csr_array((np.ones(len(linked)), (rows, columns)), shape=(len(kept), len(kept)))
        count, labels = connected_components(graph, directed=False) if kept else (0, [])
        return [[kept[k] for k in np.flatnonzero(labels == label)] for label in range(count)]

    def count(self, precision: Precision) -> int:
        """Casts that a precision needs."""
        total = 0
        for slot, producer in self._producer.items():
            if producer == _FREE:
                continue
            made = producer == _FP32 or producer in precision
            wanted = {
                kind == _FP32 or kind in precision
                for kind in self._readers.get(slot, ())
                if kind != _FREE
            }
            total += (not made) in wanted
        return total


@dataclass(frozen=True, slots=True)
class Cost:
    """What a precision costs.

    Attributes
    ----------
    fp32_ops
        Ops in FP32. The Neural Engine does not run FP32, so each of them leaves it.
    islands
        Connected groups of them.
    casts
        Casts between FP16 and FP32.
    weight_bytes
        Bytes of the weights of candidate ops: 4 a number in FP32 ops, 2 in FP16 ops.
    fp32_flops
        The share of floating-point operations that is done in FP32, 0 to 1.
    """

    fp32_ops: int
    islands: int
    casts: int
    weight_bytes: int
    fp32_flops: float

    def price(self, objective: str) -> float:
        """What is kept small, in one of :data:`mpsearch.options.MINIMIZED`."""
        return {
            "ops": float(self.fp32_ops),
            "casts": float(self.fp32_ops + self.casts),
            "bytes": float(self.weight_bytes),
            "flops": self.fp32_flops,
        }[objective]


def cost(ops: Sequence[CandidateOp], casts: Casts, precision: Precision) -> Cost:
    """The cost of a precision."""
    kept = [op for op in ops if op.index in precision]
    total = sum(op.flops for op in ops)
    return Cost(
        len(kept),
        len(casts.islands(precision)),
        casts.count(precision),
        sum(op.weight_bytes if op.index in precision else op.weight_bytes // 2 for op in ops),
        sum(op.flops for op in kept) / total if total else 0.0,
    )
