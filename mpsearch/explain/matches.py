"""The patterns of :data:`mpsearch.explain.remedies.REMEDIES`: shapes of the graph around an op.

Each function takes a node where its pattern begins or ends. It gives the ops of the pattern, and
how the rewrite is called there; None where the pattern is not there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ..numerics.formats import FP16
from ..program.graph import Node, Ref
from .neighborhood import (
    SHAPES,
    Graph,
    before,
    constant,
    constant_peak,
    factors_of,
    is_square,
    of_type,
    reads,
    scalars,
    scaled_by,
    terms_of,
)

#: The ops of a pattern, the first where it starts, and how its rewrite is called.
Found = tuple[Sequence[Node], str]

_SUMS = frozenset(["reduce_mean", "reduce_sum"])
_ROOTS = frozenset(["sqrt", "rsqrt", "pow"])
#: How large powers may be that are scaled: a quarter of FP16's range, for the next input.
_LARGEST_POWER = 2.0**14
#: What lies between a power and its logarithm, or between a product and what divides it.
_LINEAR = frozenset(
    [
        *("add", "mul", "linear", "matmul", "conv", "maximum", "clip", "relu", "reduce_sum"),
        *("reduce_mean", "reshape", "transpose", "slice_by_index", "split", "expand_dims"),
        *("squeeze", "concat"),
    ]
)
#: What may lie between a mask and softmax.
_MASKING = frozenset(["add", "mul", "expand_dims", "reshape", "select"])
#: A result this much smaller than its largest term says that the terms have an offset in common.
_OFFSET = 0.1


# -- squares ---------------------------------------------------------------------------------------


def norm(graph: Graph, node: Node) -> Found | None:
    summed = next((r for r in graph.readers(node) if r.op_type in _SUMS), None)
    if not is_square(node) or summed is None:
        return None
    rooted = graph.path(summed, frozenset(["add", "clip"]), of_type(*_ROOTS))
    x = next(reads(node))
    if rooted is None or not _normalizes(graph, rooted[-1], x):
        return None
    eps = next((c for n in rooted for c in scalars(n) if n.op_type == "add"), 0.0)
    mean = "" if summed.op_type == "reduce_mean" else ", mean=False"
    call = f"x = scaled_norm(x, dim={graph.dim(summed)}, eps={eps:g}{mean})"
    made = graph.made(x)
    centered = made is not None and made.op_type == "sub"
    known = f"# x: {graph.shape(x)}" + (", the mean subtracted already" if centered else "")
    return [node, summed, *rooted], f"{known}\n{call}"


def _normalizes(graph: Graph, root: Node, x: int) -> bool:
    """Whether x is divided by a root. Where it is not, the root is a magnitude."""

    def scales_x(reader: Node) -> bool:
        scales = reader.op_type in ("mul", "real_div")
        return scales and graph.origin(x) in map(graph.origin, reads(reader))

    between = SHAPES | {"add", "clip", "inverse", "maximum", "mul", "real_div"}
    path = [root, *(graph.path(root, between, scales_x) or ())]
    divisor = root.op_type == "rsqrt" or (root.op_type == "pow" and constant(root, "y") == -0.5)
    for node, reader in pairwise(path):
        below = reader.op_type == "real_div" and graph.source(reader, "y") is node
        divisor ^= below or reader.op_type == "inverse"
    return len(path) > 1 and divisor


def magnitude(graph: Graph, node: Node) -> Found | None:
    if node.op_type != "sqrt" and not (node.op_type == "pow" and constant(node, "y") == 0.5):
        return None
    terms = terms_of(graph, node)
    if terms is None or not {n.op_type for n in terms.between} <= SHAPES | {"add"}:
        return None
    squares, sums = terms.leaves, [n for n in terms.leaves if n.op_type in _SUMS]
    if len(squares) == len(sums) == 1:
        squares = graph.sources(sums[0])
    elif sums or len(squares) < 2:
        return None
    shapes = {graph.shape(s) for n in squares for s in reads(n)}
    if len(shapes) != 1 or not all(map(is_square, squares)):
        return None
    eps = sum(c for n in terms.between for c in scalars(n))
    x, dim, kept = "x", graph.dim(sums[0]) if sums else "0", False
    if sums:
        kept = bool(constant(sums[0], "keep_dims"))
        dim += "" if sums[0].op_type == "reduce_sum" else ", mean=True"
    else:
        x = f"torch.stack([{', '.join('abcdefgh'[: len(squares)])}])"
    call = f"y = magnitude({x}, eps={eps:g}, keepdim={kept}, dim={dim})"
    return [
        *squares,
        *sums,
        *terms.between,
        node,
    ], f"# {'x' if sums else 'each'}: {shapes.pop()}\n{call}"


def log_power(graph: Graph, node: Node) -> Found | None:
    path = graph.path(node, _LINEAR, of_type("log")) if is_square(node) else None
    if path is None:
        return None
    x = next(iter(reads(node)))
    most = max(graph.largest(n) for n in [node, *path])
    scale = _power_of_two(max(most / _LARGEST_POWER, 1.0) ** 0.5)
    eps = next((c for n in path for c in scalars(n) if n.op_type == "add"), 0.0)
    if 0 < eps < FP16.step * scale**2:
        return None  # it would be 0, and the logarithm of silence infinite
    call = f"y = log_power(x, scale={scale:g}, eps={eps:g})"
    return [node, *path], f"# x: {graph.shape(x)}\n{call}"


def complex_division(graph: Graph, node: Node) -> Found | None:
    squares = graph.sources(node)
    divided = [r for r in graph.readers(node) if r.op_type == "real_div"]
    if node.op_type != "add" or len(squares) != 2 or not all(map(is_square, squares)):
        return None
    if not divided:
        return None
    above = [n for d in divided for n in before(graph, d, 3)]
    x = next(iter(reads(squares[0])))
    call = f"# each {graph.shape(x)}\nre, im = complex_divide(a, b, c, d)"
    return [node, *squares, *divided, *above], call


def distances(graph: Graph, node: Node) -> Found | None:
    """|a|^2 + |b|^2 - 2 ab, where a and b have an offset in common."""
    terms = terms_of(graph, node) if node.op_type in ("add", "sub") else None
    if terms is None or sorted(n.op_type for n in terms.leaves) != [
        "matmul",
        "reduce_sum",
        "reduce_sum",
    ]:
        return None
    product, *sums = sorted(terms.leaves, key=lambda n: n.op_type)
    squares = [s for n in sums for s in graph.sources(n) if is_square(s)]
    trails = [graph.trail(slot) for slot in reads(product)]
    points = [graph.origin(next(reads(n))) for n in squares]
    if sorted(slot for _, slot in trails) != sorted(points) or not _offset(graph, node, sums):
        return None
    rank = len(graph.sizes(squares[0].outputs[0]) or ())
    dim = -1 if graph.dims(sums[0])[0] in (-2, rank - 2) else -2
    call = f"# a: {graph.shape(points[0])}\na = centered(a, dim={dim})"
    if points[0] != points[1]:
        call = f"# a and b: {graph.shape(points[0])} and {graph.shape(points[1])}"
        call += f"\na, b = centered(a, dim={dim}), centered(b, dim={dim}, by=a)"
    moved = [n for nodes, _ in trails for n in nodes]
    return [*squares, *sums, *moved, product, *terms.between, node], call


def variance(graph: Graph, node: Node) -> Found | None:
    """E[xy] - E[x] E[y], where x and y have an offset."""
    if node.op_type != "sub" or len(graph.sources(node)) != 2:
        return None
    mean, product = graph.sources(node)
    inner = next(iter(graph.sources(mean)), None)
    means = [n for s in factors_of(product) if (n := graph.made(s)) is not None]
    if inner is None or len(means) != 2 or any(n.op_type != "reduce_mean" for n in [mean, *means]):
        return None
    taken = [next(reads(n)) for n in means]
    dims = {graph.dim(n) for n in [mean, *means]}
    same = sorted(taken) == sorted(factors_of(inner)) and len(dims) == 1
    if not same or not _offset(graph, node, [mean]):
        return None
    dim, lines = dims.pop(), [f"# x: {graph.shape(taken[0])}, for this difference alone"]
    lines += [f"{x} = centered({x}, dim={dim})" for x in "xy"[: len(set(taken))]]
    return [inner, mean, *means, product, node], "\n".join(lines)


def phase(graph: Graph, node: Node) -> Found | None:
    if node.op_type not in ("sin", "cos"):
        return None
    scaled: list[Node] = []
    factor, slot = np.ones(()), next(reads(node))
    while (maker := graph.made(slot)) is not None and (by := scaled_by(maker)) is not None:
        factor, slot, scaled = factor * by, next(reads(maker)), [maker, *scaled]
    turns = float(np.abs(factor).max(initial=0.0)) / (2 * math.pi)
    # FP16 must hold what is wrapped, and a phase of less than a turn has nothing to leave out.
    broken = maker is not None and graph.verdict(maker)
    if not scaled or broken or graph.largest(scaled[-1]) <= 2 * math.pi:
        return None
    peak = graph.largest(scaled[-1]) / (2 * math.pi) / turns
    w, said = f"torch.tensor({float(factor.flat[0])!r})", ""
    if factor.size > 1:
        w, said = "w", f", w: {factor.shape}, all that multiplies it"
    units = f"{_power_of_two(peak) / 64:g}, {_power_of_two(turns) / 32:g}"
    call = f"phase = wrapped_phase(x, {w}, {units})"
    return [*scaled, node], f"# x: {graph.shape(slot)}{said}\n{call}"


# -- exponentials ----------------------------------------------------------------------------------


def softplus(graph: Graph, node: Node) -> Found | None:
    """softplus, or log(1 + exp(x))."""
    nodes = [node]
    if node.op_type == "log" and (added := graph.source(node, "x")) is not None:
        powers = [n for n in graph.sources(added) if n.op_type == "exp"]
        if added.op_type == "add" and list(scalars(added)) == [1.0] and len(powers) == 1:
            nodes = [*powers, added, node]
    if node.op_type != "softplus" and len(nodes) == 1:
        return None
    return nodes, f"# x: {graph.shape(nodes[0].fp32.inputs['x'])}\ny = softplus(x)"


def logsumexp(graph: Graph, node: Node) -> Found | None:
    if node.op_type != "reduce_log_sum_exp":
        return None
    x = graph.shape(node.fp32.inputs["x"])
    return [node], f"# x: {x}\ny = logsumexp(x, dim={graph.dim(node)})"


def log_softmax(graph: Graph, node: Node) -> Found | None:
    softmax = graph.source(node, "x")
    if node.op_type != "log" or softmax is None or softmax.op_type != "softmax":
        return None
    axis = constant(softmax, "axis")
    dim = -1 if axis is None else int(axis)
    x = graph.shape(softmax.fp32.inputs["x"])
    return [softmax, node], f"# x: {x}\ny = log_softmax(x, dim={dim})"


def softmax(graph: Graph, node: Node) -> Found | None:
    path = _over_sum(graph, node, "reduce_sum", SHAPES | {"add", "reduce_sum"})
    if path is None:
        return None
    sums = [n for n in path if n.op_type == "reduce_sum"]
    if len(sums) > 1 and not all(constant(n, "keep_dims") for n in sums):
        return None
    dims = [axis for n in sums for axis in graph.dims(n)]
    dim = dims[0] if len(dims) == 1 else tuple(dims)
    x = graph.shape(next(reads(node)))
    return [node, *path], f"# x: {x}\ny = softmax(x, dim={dim}{_eps(path)})"


def scatter_softmax(graph: Graph, node: Node) -> Found | None:
    gathers = ("gather", "gather_along_axis")
    path = _over_sum(graph, node, "scatter", SHAPES | {"add", *gathers})
    gather = next((n for n in path or () if n.op_type in gathers), None)
    if path is None or gather is None or constant(path[0], "mode") != "add":
        return None
    scatter, axis = path[0], int(constant(gather, "axis"))
    sizes = graph.sizes(scatter.outputs[0])
    if sizes is None or _indices(graph, scatter) != _indices(graph, gather):
        return None
    groups = sizes[axis]
    x = f"# x: {graph.shape(next(reads(node)))}, index: the group of each along {axis}"
    call = f"y = scatter_softmax(x, index, groups={groups}, dim={axis}{_eps(path)})"
    return [node, *path], f"{x}\n{call}"


def _over_sum(graph: Graph, node: Node, summing: str, between: frozenset[str]) -> list[Node] | None:
    """From an exponential, over its sum, to its division by that, where nothing else reads it."""
    readers = graph.readers(node) if node.op_type == "exp" else []
    summed = next((r for r in readers if r.op_type.startswith(summing)), None)

    def divides(reader: Node) -> bool:
        return reader.op_type == "real_div" and next(reads(reader)) in node.outputs

    path = None if summed is None else graph.path(summed, between, divides)
    if summed is None or path is None or set(map(id, readers)) != {id(summed), id(path[-1])}:
        return None
    added = [n for n in path if n.op_type == "add"]
    return [summed, *path] if all(list(scalars(n)) for n in added) else None


def _eps(path: Sequence[Node]) -> str:
    """What is added on a path, as an argument."""
    eps = sum(c for n in path if n.op_type == "add" for c in scalars(n))
    return f", eps={eps:g}" if eps else ""


def _indices(graph: Graph, node: Node) -> Any:
    """What says which indices a gather or a scatter takes, whatever their shape."""
    source = node.fp32.inputs["indices"]
    if not isinstance(source, Ref):
        return np.ravel(constant(node, "indices")).tolist()
    slot = graph.origin(source.slot)
    # Negative indices count from the end: select(i >= 0, i, i + n).
    while (maker := graph.made(slot)) is not None and maker.op_type == "select":
        slot = graph.origin(list(reads(maker))[1])
    return slot


# -- products and masks ----------------------------------------------------------------------------


def attention(graph: Graph, node: Node) -> Found | None:
    if graph.verdict(node) != "overflow" or node.op_type != "matmul":
        return None
    for reader in graph.readers(node):
        scale = next(iter(scalars(reader)), None)
        if scale is None or reader.op_type not in ("mul", "real_div"):
            continue
        scale = 1 / scale if reader.op_type == "real_div" else scale
        fits = 0 < scale < 1 and graph.largest(reader) <= FP16.largest
        if fits and graph.path(reader, frozenset(["add", "select"]), of_type("softmax")):
            q, k = (graph.shape(node.fp32.inputs[name]) for name in ("x", "y"))
            call = f"scores = attention_scores(q, k, scale={scale:g})"
            return [node, reader], f"# q: {q}, k transposed: {k}\n{call}"
    return None


def linear_attention(graph: Graph, node: Node) -> Found | None:
    if graph.verdict(node) != "overflow" or node.op_type != "matmul":
        return None
    path = graph.path(node, _LINEAR, of_type("real_div"))
    if path is None or not any(n.op_type == "matmul" for n in path):
        return None
    between = [n for n in before(graph, path[-1], 5) if n.op_type in _LINEAR]
    eps = next((c for n in between for c in scalars(n) if n.op_type == "add"), 0.0)
    k = graph.shape(node.fp32.inputs["x"])
    call = f"# the product takes {k}\nout = linear_attention(q, k, v, eps={eps:g})"
    return [node, *path, *between], call


def mask(graph: Graph, node: Node) -> Found | None:
    if graph.verdict(node) not in ("overflow", "constant"):
        return None
    if node.op_type not in ("add", "mul", "select", "softmax"):
        return None
    near = before(graph, node, 2)
    peak = max(map(constant_peak, near), default=0.0)
    path = [] if node.op_type == "softmax" else graph.path(node, _MASKING, of_type("softmax"))
    if path is None or peak <= 1e4:
        return None
    call = f"# instead of {-peak:.3g}\nscores = scores + finite_mask(mask)"
    if any(n.op_type == "mul" and constant_peak(n) > 1e4 for n in (node, *near)):
        # The product overflows, and 0 times infinity is NaN: the factor is to be small.
        call = (
            f"# instead of a factor of {-peak:.3g}\nfactor = finite_mask(torch.tensor({-peak:.3g}))"
            "\nscores = scores + (1 - keep) * factor"
        )
    return [node, *near, *path], call


def _offset(graph: Graph, node: Node, terms: Sequence[Node]) -> bool:
    """Whether a difference is small against its terms, everywhere."""
    return 0 < graph.largest(node) < _OFFSET * max(map(graph.largest, terms))


def _power_of_two(value: float) -> float:
    """The next power of two, up to rounding."""
    return 2.0 ** math.ceil(math.log2(value) - 1e-3)
