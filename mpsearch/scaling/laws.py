"""How powers of two pass through ops.

A tensor t with the *exponent* k is computed as t * 2**-k. What an op's definition then asks of the
exponents of its inputs and outputs is a *law*: linear equations between them. Ops that are not
homogeneous (exp, softmax, tanh, ...) ask that all be 0, and so does every op that is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..program.graph import Constant, Node, Source

#: Coefficients by port, of a sum that must be 0. Ports are inputs by name (``x``, ``values.0``) and
#: outputs by place (``-> 0``).
Equation = dict[str, int]
Law = Callable[[Node], list[Equation] | None]

OUT = "-> 0"


def equations(node: Node) -> list[Equation]:
    """What an op asks of the exponents of its ports; those that are in no equation must be 0.

    What is free has an equation with itself alone, whose coefficient is 0.
    """
    law = _LAWS.get(node.op_type)
    found = law(node) if law is not None and not node.blocks else None
    return found or []


def ports(node: Node) -> Iterator[tuple[str, Source]]:
    """The inputs of an op, those of lists one by one."""
    for name, source in node.fp32.inputs.items():
        if isinstance(source, list):
            for place, item in enumerate(source):
                yield f"{name}.{place}", item
        else:
            yield name, source


def scales_products(op_type: str, port: str) -> bool:
    """Whether an input multiplies, so that its own small values matter and not its sum's."""
    name = port.partition(".")[0]
    return op_type in _PRODUCTS and name not in ("bias", "epsilon", "beta")


def divides(op_type: str, port: str) -> bool:
    """Whether the result is wrong wherever this input vanishes."""
    return op_type in _DIVIDING and port in ("x", "y") and (op_type, port) != ("real_div", "x")


_PRODUCTS = {"mul", "matmul", "linear", "conv", "conv_transpose", "einsum", "real_div"}
_PRODUCTS |= {"layer_norm", "instance_norm", "batch_norm", "linear_activation"}
_DIVIDING = {"real_div", "rsqrt", "inverse", "log", "sqrt"}


def _constant(node: Node, name: str) -> float | None:
    source = node.fp32.inputs.get(name)
    if not isinstance(source, Constant):
        return None
    value = np.asarray(source.load())
    return float(value) if value.size == 1 else None


def _equal(*names: str) -> Law:
    """The results have the exponent of these inputs, which is the same for all."""

    def law(node: Node) -> list[Equation]:
        given = [p for p, _ in ports(node) if p.partition(".")[0] in names]
        results = [f"-> {place}" for place in range(len(node.outputs))]
        return [{given[0]: 1, other: -1} for other in (*given[1:], *results)]

    return law


def _alike(*names: str) -> Law:
    """These inputs have the same exponent, which the result, no magnitude, does not have."""

    def law(node: Node) -> list[Equation]:
        return [{names[0]: 1, other: -1} for other in names[1:]] or [{names[0]: 0}]

    return law


def _product(x: str, y: str, *added: str, divided: bool = False) -> Law:
    def law(node: Node) -> list[Equation]:
        found = [{x: 1, y: -1 if divided else 1, OUT: -1}]
        return found + [{name: 1, OUT: -1} for name in added if name in node.fp32.inputs]

    return law


def _einsum(node: Node) -> list[Equation]:
    return [{"values.0": 1, "values.1": 1, OUT: -1}]


def _power(above: int, below: int = 1) -> Law:
    """The result is x + epsilon to the power of ``above / below``."""

    def law(node: Node) -> list[Equation]:
        found: list[Equation] = [{"x": above, OUT: -below}]
        return found + [{"x": 1, "epsilon": -1}] * ("epsilon" in node.fp32.inputs)

    return law


def _pow(node: Node) -> list[Equation] | None:
    exponent = _constant(node, "y")
    if exponent is None or not abs(exponent) <= 4 or not exponent or (2 * exponent) % 1:
        return None
    whole = exponent == int(exponent)
    return [{"x": int(exponent) if whole else int(2 * exponent), OUT: -1 if whole else -2}]


def _norm(node: Node) -> list[Equation]:
    """Any scale of x gives the same, with epsilon scaled by its square."""
    found: list[Equation] = [{"x": 0}]
    if "epsilon" in node.fp32.inputs:
        found = [{"x": 2, "epsilon": -1}]
    if "gamma" in node.fp32.inputs:
        found += [{name: 1, OUT: -1} for name in ("gamma", "beta") if name in node.fp32.inputs]
    return found


def _batch_norm(node: Node) -> list[Equation]:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta."""
    out: Equation = {"x": 1, OUT: -1}
    if "gamma" in node.fp32.inputs:
        out["gamma"] = 1
    found: list[Equation] = [{"x": 1, "mean": -1}, out]
    return found + [{"beta": 1, OUT: -1}] * ("beta" in node.fp32.inputs)


def _attention(node: Node) -> list[Equation]:
    """Queries may be scaled against keys; the logits are as they are."""
    return [{"query": 1, "key": 1}, {"value": 1, OUT: -1}]


def _scatter(node: Node) -> list[Equation] | None:
    source = node.fp32.inputs.get("mode")
    mode = str(source.load()) if isinstance(source, Constant) else "add"
    return _equal("data", "updates")(node) if mode in ("add", "sub", "update") else None


#: Ops that give the same for any scale of ``x``.
NORMS = frozenset(["layer_norm", "instance_norm", "l2_norm"])
#: Ops whose results are values of ``x``.
MOVES = frozenset(
    [
        *("reshape", "reshape_like", "transpose", "squeeze", "expand_dims", "flatten2d", "split"),
        *("tile", "slice_by_index", "slice_by_size", "identity", "reverse", "crop"),
        *("depth_to_space", "space_to_depth", "pixel_shuffle", "pixel_unshuffle"),
        *("batch_to_space", "space_to_batch", "sliding_windows", "band_part"),
        *("gather", "gather_along_axis", "gather_nd", "upsample_nearest_neighbor"),
    ]
)

_LAWS: dict[str, Law] = {
    **dict.fromkeys(MOVES, _equal("x")),
    **dict.fromkeys(
        [
            *("max_pool", "avg_pool", "upsample_bilinear", "resize_nearest_neighbor"),
            *("resize_bilinear", "resample", "relu", "leaky_relu", "prelu", "abs", "cumsum"),
            *("reduce_sum", "reduce_mean", "reduce_max", "reduce_min"),
            *("reduce_l1_norm", "reduce_l2_norm"),
        ],
        _equal("x"),
    ),
    **dict.fromkeys(["add", "sub", "maximum", "minimum"], _equal("x", "y")),
    **dict.fromkeys(["concat", "stack"], _equal("values")),
    "select": _equal("a", "b"),
    "clip": _equal("x", "alpha", "beta"),
    "pad": _equal("x", "constant_val"),
    "slice_update": _equal("x", "update"),
    **dict.fromkeys(["scatter", "scatter_along_axis", "scatter_nd"], _scatter),
    **dict.fromkeys(["greater", "greater_equal", "less", "less_equal"], _alike("x", "y")),
    **dict.fromkeys(["equal", "not_equal"], _alike("x", "y")),
    **dict.fromkeys(["sign", "reduce_argmax", "reduce_argmin", "argsort"], _alike("x")),
    **dict.fromkeys(["mul", "matmul"], _product("x", "y")),
    **dict.fromkeys(["linear", "conv", "conv_transpose"], _product("x", "weight", "bias")),
    "real_div": _product("x", "y", divided=True),
    "linear_activation": _product("x", "alpha", "beta"),
    "einsum": _einsum,
    "square": _power(2),
    "reduce_sum_square": _power(2),
    "sqrt": _power(1, 2),
    "rsqrt": _power(-1, 2),
    "inverse": _power(-1),
    "pow": _pow,
    **dict.fromkeys(NORMS, _norm),
    "batch_norm": _batch_norm,
    "scaled_dot_product_attention": _attention,
}
