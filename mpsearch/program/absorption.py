"""What ops make of an infinity, by their definitions.

A rule is given what of an op's inputs is infinite in FP16 and finite in FP32, and says what then is
of its result: nothing (it is absorbed), the same kind of thing, or something wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from .graph import Constant, Node

_LARGEST = 65504.0  # FP16's


@dataclass(frozen=True, slots=True)
class Infinite:
    """Infinite in FP16 where FP32 is finite.

    Attributes
    ----------
    positive, negative
        Which infinities there can be.
    masked
        Whether integers, truth values and constants alone decide which elements are infinite.
    least
        The magnitude that the true values have at least.
    """

    positive: bool = False
    negative: bool = False
    masked: bool = False
    least: float = _LARGEST

    def __bool__(self) -> bool:
        return self.positive or self.negative

    def __or__(self, other: Infinite) -> Infinite:
        if not (self and other):
            return self or other
        return Infinite(
            self.positive or other.positive,
            self.negative or other.negative,
            self.masked and other.masked,
            min(self.least, other.least),
        )

    def __neg__(self) -> Infinite:
        return replace(self, positive=self.negative, negative=self.positive)


NONE = Infinite()
#: A rule's answer where an op makes something wrong of an infinity: NaN, or another finite value.
LOST = None


@dataclass(frozen=True, slots=True)
class Inputs:
    """What an op reads: its infinities, by parameter, and how large everything else is."""

    node: Node
    found: Mapping[str, Infinite]
    size: Callable[[str], float]

    def __getitem__(self, name: str) -> Infinite:
        return self.found.get(name, NONE)

    @property
    def all(self) -> Infinite:
        """Of all parameters together."""
        found = NONE
        for infinite in self.found.values():
            found = found | infinite
        return found

    @property
    def others(self) -> float:
        """The largest magnitude of x and y where they are not infinite; of none, 0."""
        rest = [n for n in ("x", "y") if n in self.node.fp32.inputs and n not in self.found]
        return max(map(self.size, rest), default=0.0)

    def constant(self, name: str) -> np.ndarray | None:
        """A parameter's value where it is a constant."""
        source = self.node.fp32.inputs.get(name)
        return np.asarray(source.load()) if isinstance(source, Constant) else None


Rule = Callable[[Inputs], Infinite | None]


def _from(least: float) -> Rule:
    """Saturates: from this magnitude on, FP16 cannot tell the result from that for infinity."""
    return lambda given: NONE if given["x"].least >= least else LOST


def _falls_to(least: float) -> Rule:
    """A limit towards minus infinity, reached as far as FP16 can tell; none towards infinity."""

    def rule(given: Inputs) -> Infinite | None:
        x = given["x"]
        return LOST if x.negative and x.least < least else replace(x, negative=False)

    return rule


def _passes(given: Inputs) -> Infinite | None:
    return given.all


def _clip(given: Inputs) -> Infinite | None:
    low, high = given.constant("alpha"), given.constant("beta")
    x = given["x"]
    bounds = [
        abs(float(bound))
        for bound, reached in ((high, x.positive), (low, x.negative))
        if reached and bound is not None
    ]
    known = (high is not None or not x.positive) and (low is not None or not x.negative)
    return NONE if known and max(bounds, default=0.0) <= x.least else LOST


def _sigmoid_hard(given: Inputs) -> Infinite | None:
    alpha, beta = given.constant("alpha"), given.constant("beta")
    if alpha is None or beta is None or not float(alpha) > 0:
        return LOST
    return NONE if float(alpha) * given["x"].least >= 1 + abs(float(beta)) else LOST


def _add(given: Inputs) -> Infinite | None:
    both = given.all
    if len(given.found) > 1 and both.positive and both.negative:
        return LOST
    least = both.least - given.others
    return replace(both, least=least) if least > 0 else LOST


def _sub(given: Inputs) -> Infinite | None:
    turned = {name: -value if name == "y" else value for name, value in given.found.items()}
    return _add(replace(given, found=turned))


def _scaled(given: Inputs) -> Infinite | None:
    """Times or over a constant of one sign, without zeros."""
    divides = given.node.op_type == "real_div"
    if len(given.found) > 1 or (divides and "y" in given.found):
        return LOST
    ((name, infinite),) = given.found.items()
    factor = given.constant("y" if name == "x" else "x")
    if factor is None or not factor.size or not np.isfinite(factor).all():
        return LOST
    sizes = np.abs(factor)
    if not (sizes > 0).all() or not ((factor > 0).all() or (factor < 0).all()):
        return LOST
    least = infinite.least / float(sizes.max()) if divides else infinite.least * float(sizes.min())
    found = replace(infinite, least=least)
    return found if (factor > 0).all() else -found


def _linear(given: Inputs) -> Infinite | None:
    """``alpha * x + beta``; leaky_relu has alpha below 0 alone."""
    alpha, beta = given.constant("alpha"), given.constant("beta")
    if set(given.found) != {"x"} or alpha is None or not (alpha > 0).all():
        return LOST
    offset = 0.0 if beta is None else float(np.abs(beta).max())
    least = given["x"].least * min(1.0, float(alpha.min())) - offset
    return replace(given["x"], least=least) if least > 0 else LOST


def _maximum(given: Inputs) -> Infinite | None:
    both = given.all
    if both.negative and given.others > both.least:
        return LOST
    below = len(given.found) > 1 and all(value.negative for value in given.found.values())
    return replace(both, negative=below)


def _minimum(given: Inputs) -> Infinite | None:
    turned = _maximum(replace(given, found={n: -v for n, v in given.found.items()}))
    return LOST if turned is None else -turned


def _compares(given: Inputs) -> Infinite | None:
    """With something smaller; two infinities of one sign would be taken for equal."""
    return NONE if len(given.found) == 1 and given.others < given.all.least else LOST


def _magnitude(given: Inputs) -> Infinite | None:
    """abs, square: infinite wherever the input is."""
    x = given["x"]
    least = x.least**2 if given.node.op_type == "square" else x.least
    return replace(x, positive=bool(x), negative=False, least=least)


def _grows(function: Callable[[float], float]) -> Rule:
    """sqrt, log, gelu, silu: infinity stays so; minus infinity gives NaN."""

    def rule(given: Inputs) -> Infinite | None:
        x = given["x"]
        if x.negative or set(given.found) != {"x"} or x.least <= 1:
            return LOST
        return replace(x, least=function(x.least))

    return rule


def _largest(given: Inputs) -> Infinite | None:
    """Minus infinity beside something finite is not the largest."""
    x = given["x"]
    return replace(x, negative=x.negative and not x.masked)


def _smallest(given: Inputs) -> Infinite | None:
    found = _largest(replace(given, found={"x": -given["x"]}))
    return LOST if found is None else -found


def _beside(given: Inputs) -> Infinite | None:
    """softmax, argmax: minus infinity beside something finite counts for nothing."""
    x = given["x"]
    return NONE if x.masked and not x.positive and x.least >= 2 * _EXP else LOST


def _attention(given: Inputs) -> Infinite | None:
    mask = given["attn_mask"]
    alone = len(given.found) == 1 and mask.masked and not mask.positive
    return NONE if alone and mask.least >= 2 * _EXP else LOST


#: exp(-18), and what follows from it, is nothing to FP16, whose smallest number is 6e-8.
_EXP = 18.0
RULES: dict[str, Rule] = {
    **dict.fromkeys(
        [
            *("reshape", "reshape_like", "transpose", "squeeze", "expand_dims", "flatten2d"),
            *("concat", "stack", "split", "tile", "slice_by_index", "slice_by_size", "identity"),
            *("reverse", "crop", "depth_to_space", "space_to_depth", "pixel_shuffle"),
            *("pixel_unshuffle", "batch_to_space", "space_to_batch", "sliding_windows"),
            *("select", "gather", "gather_along_axis", "gather_nd", "slice_update", "pad"),
            *("max_pool", "upsample_nearest_neighbor"),
        ],
        _passes,
    ),
    **dict.fromkeys(["tanh", "erf", "sigmoid"], _from(_EXP)),
    "atan": _from(4096.0),  # 1 / 4096 is less than half of FP16's step at pi / 2
    "relu6": _from(6.0),
    "sign": _from(0.0),
    "relu": _falls_to(0.0),
    **dict.fromkeys(["exp", "softplus", "elu"], _falls_to(_EXP)),
    "exp2": _falls_to(26.0),
    "sqrt": _grows(math.sqrt),
    "log": _grows(math.log),
    **dict.fromkeys(["gelu", "silu"], _grows(lambda x: x)),
    **dict.fromkeys(["abs", "square"], _magnitude),
    **dict.fromkeys(["greater", "greater_equal", "less", "less_equal"], _compares),
    **dict.fromkeys(["equal", "not_equal"], _compares),
    **dict.fromkeys(["mul", "real_div"], _scaled),
    **dict.fromkeys(["linear_activation", "leaky_relu"], _linear),
    **dict.fromkeys(["softmax", "reduce_argmax"], _beside),
    **dict.fromkeys(["reduce_max", "reduce_log_sum_exp"], _largest),
    "reduce_min": _smallest,
    "add": _add,
    "sub": _sub,
    "clip": _clip,
    "sigmoid_hard": _sigmoid_hard,
    "maximum": _maximum,
    "minimum": _minimum,
    "scaled_dot_product_attention": _attention,
}
#: Ops that absorb minus infinity only beside something finite.
MASKED = frozenset(["softmax", "reduce_argmax", "scaled_dot_product_attention"])
