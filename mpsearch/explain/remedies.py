"""Changes to the PyTorch model that would cost less than FP32.

A remedy is found by the shape of the graph around an op that FP16 breaks: squares that are averaged
and rooted, logits that are scaled after the product, masks that FP16 cannot hold. The code that it
shows is that of :mod:`mpsearch.rewrites`, called with the sizes of the model at hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import rewrites
from ..numerics.formats import FP16
from ..program.graph import Constant, Function, Node, Ref, Source
from ..program.lowering import CandidateOp

#: How many ops may lie between the parts of a pattern.
_HOPS = 6
_SUMS = frozenset(["reduce_mean", "reduce_sum"])
_ROOTS = frozenset(["sqrt", "rsqrt", "pow"])
#: What lies between a power and its logarithm, or between a product and what divides it.
_LINEAR = frozenset(
    [
        *("add", "mul", "linear", "matmul", "conv", "maximum", "clip", "relu", "reduce_sum"),
        *("reduce_mean", "reshape", "transpose", "slice_by_index", "split", "expand_dims"),
        *("squeeze", "concat"),
    ]
)


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change to the model.

    Attributes
    ----------
    kind
        The function of :mod:`mpsearch.rewrites` that does it.
    title
        What to do, in a sentence.
    ops
        The ops that then need no FP32, by name.
    layers, lines
        Where they come from: PyTorch modules, and lines of Python.
    call
        How the function is called here, with the shapes at hand.
    code
        The function's source, and its call.
    """

    kind: str
    title: str
    ops: tuple[str, ...]
    layers: tuple[str, ...]
    lines: tuple[str, ...]
    call: str
    code: str


def remedies(
    function: Function,
    ops: Sequence[CandidateOp],
    verdicts: Mapping[int, str],
    largest: Mapping[int, float],
) -> list[Remedy]:
    """The remedies for harmful ops.

    Parameters
    ----------
    verdicts
        Per harmful op, by index, why FP16 breaks it (:data:`mpsearch.explain.diagnosis.VERDICTS`).
    largest
        Per op, the largest magnitude of what it computes, where known.
    """
    graph = _Graph(function, ops, largest)
    found: dict[tuple[str, str], Remedy] = {}
    for node in function.nodes:
        verdict = verdicts.get(-1 if node.candidate is None else node.candidate)
        if verdict is None:
            continue
        remedy = next((r for match in _MATCHES if (r := match(graph, node, verdict))), None)
        if remedy is None:
            continue
        key = remedy.kind, remedy.call
        if key in found:
            remedy = _merged(found[key], remedy)
        found[key] = remedy
    harmful = {ops[i].name for i in verdicts}
    named = [replace(r, ops=tuple(n for n in r.ops if n in harmful)) for r in found.values()]
    return [r for r in named if r.ops]


def _merged(first: Remedy, second: Remedy) -> Remedy:
    def both(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(a + b))

    return replace(
        first,
        ops=both(first.ops, second.ops),
        layers=both(first.layers, second.layers),
        lines=both(first.lines, second.lines),
    )


class _Graph:
    """The outer block, to be asked what stands around a node."""

    def __init__(
        self, function: Function, ops: Sequence[CandidateOp], largest: Mapping[int, float]
    ) -> None:
        self._ops = ops
        self._largest = largest
        self._producer = {slot: node for node in function.nodes for slot in node.outputs}
        self._readers: dict[int, list[Node]] = {}
        for node in function.nodes:
            for slot in _slots(node):
                self._readers.setdefault(slot, []).append(node)

    def sources(self, node: Node) -> list[Node]:
        """The nodes that write what a node reads."""
        return [self._producer[s] for s in _slots(node) if s in self._producer]

    def readers(self, node: Node) -> list[Node]:
        """The nodes that read what a node writes."""
        return [r for slot in node.outputs for r in self._readers.get(slot, ())]

    def path(
        self, start: Node, through: frozenset[str], end: frozenset[str] | set[str]
    ) -> list[Node] | None:
        """The nodes after ``start`` to the nearest of a type in ``end``."""
        paths = [[start]]
        for _ in range(_HOPS):
            longer = [[*p, r] for p in paths for r in self.readers(p[-1])]
            for path in longer:
                if path[-1].op_type in end:
                    return path[1:]
            paths = [p for p in longer if p[-1].op_type in through][:64]
        return None

    def shape(self, source: Source) -> str:
        """The shape of a value, as it is written in a comment."""
        if isinstance(source, Ref) and source.slot in self._producer:
            node = self._producer[source.slot]
            if node.candidate is not None:
                shapes = self._ops[node.candidate].output_shapes
                return str(shapes[node.outputs.index(source.slot)])
        return "(as it is)"

    def largest(self, node: Node) -> float:
        """The largest magnitude of what a node computes; 0 where not known."""
        return self._largest.get(-1 if node.candidate is None else node.candidate, 0.0)

    def remedy(self, kind: str, title: str, nodes: Sequence[Node], call: str) -> Remedy:
        """A remedy for these nodes, those first where it starts."""
        known = [self._ops[n.candidate] for n in nodes if n.candidate is not None]
        return Remedy(
            kind,
            title,
            tuple(dict.fromkeys(op.name for op in known)),
            tuple(dict.fromkeys(op.layer for op in known[:1] if op.layer)),
            tuple(dict.fromkeys(op.line for op in known[:1] if op.line)),
            call,
            inspect.getsource(getattr(rewrites, kind)) + "\n\n" + call,
        )


_Match = Callable[[_Graph, Node, str], "Remedy | None"]


def _norm(graph: _Graph, node: Node, verdict: str) -> Remedy | None:
    if verdict not in ("overflow", "underflow"):
        return None
    square = next((n for n in _back(graph, node, 4) if _is_square(n)), None)
    if square is None:
        return None
    summed = next((r for r in graph.readers(square) if r.op_type in _SUMS), None)
    rooted = None if summed is None else graph.path(summed, frozenset(["add", "clip"]), _ROOTS)
    if summed is None or rooted is None:
        return None
    eps = next((c for n in rooted for c in _scalars(n) if n.op_type == "add"), 0.0)
    axes = _constant(summed, "axes")
    dims = [int(a) for a in np.ravel(axes)] if axes is not None else [-1]
    dim: Any = dims[0] if len(dims) == 1 else tuple(dims)
    mean = "" if summed.op_type == "reduce_mean" else ", mean=False"
    x = next(iter(_tensors(square)))
    return graph.remedy(
        "scaled_norm",
        "Scale to at most 1 before squaring: the squares leave FP16's range, the norm does not.",
        [square, summed, *rooted],
        f"# x: {graph.shape(x)}\nx = scaled_norm(x, dim={dim}, eps={eps:g}{mean})",
    )


def _log_power(graph: _Graph, node: Node, verdict: str) -> Remedy | None:
    if verdict != "overflow":
        return None
    square = next((n for n in _back(graph, node, _HOPS) if _is_square(n)), None)
    path = None if square is None else graph.path(square, _LINEAR, {"log"})
    if square is None or path is None:
        return None
    x = next(iter(_tensors(square)))
    peak = max(graph.largest(square), 1.0) ** 0.5
    scale = 2.0 ** int(np.ceil(np.log2(peak)))
    eps = next((c for n in path for c in _scalars(n) if n.op_type == "add"), 0.0)
    return graph.remedy(
        "log_power",
        "Scale the signal down before the power spectrum and add the logarithm back after it.",
        [square, *path],
        f"# x: {graph.shape(x)}\ny = log_power(x, scale={scale:g}, eps={eps:g})",
    )


def _complex_division(graph: _Graph, node: Node, verdict: str) -> Remedy | None:
    if verdict not in ("overflow", "underflow"):
        return None
    for total in [n for n in _back(graph, node, 3) if n.op_type == "add"]:
        squares = graph.sources(total)
        divided = [r for r in graph.readers(total) if r.op_type == "real_div"]
        if len(squares) == 2 and all(map(_is_square, squares)) and divided:
            above = [n for d in divided for n in _back(graph, d, 3)]
            x = next(iter(_tensors(squares[0])))
            return graph.remedy(
                "complex_divide",
                "Divide by the larger of the two parts of the denominator before squaring them.",
                [total, *squares, *divided, *above],
                f"# each {graph.shape(x)}\nre, im = complex_divide(a, b, c, d)",
            )
    return None


def _softplus(graph: _Graph, node: Node, verdict: str) -> Remedy | None:
    if node.op_type != "softplus":
        return None
    x = node.fp32.inputs["x"]
    return graph.remedy(
        "softplus",
        "Spell softplus so that exp never sees a positive number (mish: x * tanh(softplus(x))).",
        [node],
        f"# x: {graph.shape(x)}\ny = softplus(x)",
    )


def _logsumexp(graph: _Graph, node: Node, verdict: str) -> Remedy | None:
    if node.op_type != "reduce_log_sum_exp":
        return None
    axes = _constant(node, "axes")
    dim = int(np.ravel(axes)[0]) if axes is not None else -1
    return graph.remedy(
        "logsumexp",
        "Take the largest value out before exp and add it after log.",
        [node],
        f"# x: {graph.shape(node.fp32.inputs['x'])}\ny = logsumexp(x, dim={dim})",
    )


def _log_softmax(graph: _Graph, node: Node, verdict: str) -> Remedy | None:
    pair = {"softmax": [node, *graph.readers(node)], "log": [*graph.sources(node), node]}
    found = pair.get(node.op_type, [])[:2]
    if [n.op_type for n in found] != ["softmax", "log"]:
        return None
    axis = _constant(found[0], "axis")
    dim = -1 if axis is None else int(axis)
    return graph.remedy(
        "log_softmax",
        "Subtract the logarithm of the sum instead of taking the logarithm of softmax.",
        found,
        f"# x: {graph.shape(found[0].fp32.inputs['x'])}\ny = log_softmax(x, dim={dim})",
    )


def _softmax(graph: _Graph, node: Node, verdict: str) -> Remedy | None:
    if verdict != "overflow":
        return None
    power = next((n for n in _back(graph, node, 2) if n.op_type == "exp"), None)
    readers = {} if power is None else {n.op_type: n for n in graph.readers(power)}
    if power is None or readers.keys() != {"reduce_sum", "real_div"}:
        return None
    total, divided = readers["reduce_sum"], readers["real_div"]
    axes = _constant(total, "axes")
    if np.size(axes) != 1 or axes is None or divided not in graph.readers(total):
        return None
    return graph.remedy(
        "softmax",
        "Use softmax for exponentials over their sum: it takes the largest out before.",
        [power, total, divided],
        f"# x: {graph.shape(power.fp32.inputs['x'])}\ny = softmax(x, dim={int(np.ravel(axes)[0])})",
    )


def _attention(graph: _Graph, node: Node, verdict: str) -> Remedy | None:
    if verdict != "overflow" or node.op_type != "matmul":
        return None
    for reader in graph.readers(node):
        scale = next(iter(_scalars(reader)), None)
        if scale is None or reader.op_type not in ("mul", "real_div"):
            continue
        scale = 1 / scale if reader.op_type == "real_div" else scale
        fits = 0 < scale < 1 and graph.largest(reader) <= FP16.largest
        if fits and graph.path(reader, frozenset(["add", "select"]), {"softmax"}):
            q, k = (graph.shape(node.fp32.inputs[name]) for name in ("x", "y"))
            return graph.remedy(
                "attention_scores",
                "Scale q and k before their product: it leaves FP16's range, the logits do not.",
                [node, reader],
                f"# q: {q}, k transposed: {k}\nscores = attention_scores(q, k, scale={scale:g})",
            )
    return None


def _linear_attention(graph: _Graph, node: Node, verdict: str) -> Remedy | None:
    if verdict != "overflow" or node.op_type != "matmul":
        return None
    path = graph.path(node, _LINEAR, {"real_div"})
    if path is None or not any(n.op_type == "matmul" for n in path):
        return None
    between = [n for n in _back(graph, path[-1], 5) if n.op_type in _LINEAR]
    eps = next((c for n in between for c in _scalars(n) if n.op_type == "add"), 0.0)
    k = graph.shape(node.fp32.inputs["x"])
    return graph.remedy(
        "linear_attention",
        "Average over the tokens instead of summing: what is divided later shrinks alike.",
        [node, *path, *between],
        f"# the product takes {k}\nout = linear_attention(q, k, v, eps={eps:g})",
    )


def _mask(graph: _Graph, node: Node, verdict: str) -> Remedy | None:
    if verdict not in ("overflow", "constant"):
        return None
    if node.op_type not in ("add", "mul", "select", "softmax"):
        return None
    peak = max((_peak(n) for n in _back(graph, node, 2)), default=0.0)
    masks = node.op_type == "softmax" or graph.path(
        node, frozenset(["add", "mul", "expand_dims", "reshape", "select"]), {"softmax"}
    )
    if not masks or peak <= 1e4:
        return None
    return graph.remedy(
        "finite_mask",
        f"Mask with -1e4 instead of {-peak:.3g}: large enough for softmax, and FP16 holds it.",
        [node, *_back(graph, node, 2), *(masks if isinstance(masks, list) else [])],
        "scores = scores + finite_mask(mask)",
    )


#: The first that fits is shown.
_MATCHES: tuple[_Match, ...] = (
    _softplus,
    _logsumexp,
    _log_softmax,
    _softmax,
    _mask,
    _attention,
    _linear_attention,
    _complex_division,
    _norm,
    _log_power,
)


def _slots(node: Node) -> Iterator[int]:
    for source in node.fp32.inputs.values():
        for item in source if isinstance(source, list) else [source]:
            if isinstance(item, Ref):
                yield item.slot


def _tensors(node: Node) -> Iterator[Source]:
    for source in node.fp32.inputs.values():
        if isinstance(source, Ref):
            yield source


def _back(graph: _Graph, node: Node, hops: int) -> list[Node]:
    """A node and what comes before it, the nearest first."""
    found, edge = [node], [node]
    for _ in range(hops):
        edge = [s for n in edge for s in graph.sources(n) if s not in found]
        found += list(dict.fromkeys(edge))
    return found


def _is_square(node: Node) -> bool:
    if node.op_type == "square":
        return True
    if node.op_type == "mul":
        x, y = node.fp32.inputs.get("x"), node.fp32.inputs.get("y")
        return isinstance(x, Ref) and isinstance(y, Ref) and x.slot == y.slot
    return node.op_type == "pow" and _constant(node, "y") == 2


def _constant(node: Node, name: str) -> Any:
    source = node.fp32.inputs.get(name)
    if not isinstance(source, Constant):
        return None
    value = np.asarray(source.load())
    return value.item() if value.size == 1 and name != "axes" else value


def _scalars(node: Node) -> Iterator[float]:
    """The constant numbers that an op takes as operands."""
    for name in ("x", "y"):
        value = _constant(node, name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield float(value)


def _peak(node: Node) -> float:
    """The largest magnitude among an op's constant operands."""
    values = [_constant(node, name) for name in ("x", "y", "a", "b")]
    sizes = [
        np.abs(np.asarray(v, dtype=np.float64)).max(initial=0.0)
        for v in values
        if v is not None and np.asarray(v).dtype.kind == "f"
    ]
    return float(max(sizes, default=0.0))
