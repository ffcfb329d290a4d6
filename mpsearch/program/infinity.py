"""What becomes of an infinity: followed through the program, for every input.

Where FP16 turns a finite value into an infinity, what reads it may still give what it would have
given: tanh(70,000) is 1, and so is tanh(infinity). Such an op *absorbs* the infinity. Others pass
it on, or make NaN or a wrong finite value of it: x / infinity is 0, and x / 70,000 is not. This is
decided by the ops' definitions, not by samples.

Softmax needs one thing more: minus infinity counts as absorbed only where *masked*, that is where
integers, truth values and constants alone decide which elements are infinite. What is not masked is
then finite beside it, as long as not everything is masked; then FP32's result means nothing either.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .graph import Constant, Function, Node, Ref, Source, refs, slots_read


@dataclass(frozen=True, slots=True)
class Infinite:
    """Infinite in FP16 where FP32 is finite.

    Attributes
    ----------
    positive, negative
        Which infinities there can be.
    masked
        Whether integers, truth values and constants alone decide which elements are infinite.
    """

    positive: bool = False
    negative: bool = False
    masked: bool = False

    def __bool__(self) -> bool:
        return self.positive or self.negative

    def __or__(self, other: Infinite) -> Infinite:
        if not (self and other):
            return self or other
        return Infinite(
            self.positive or other.positive,
            self.negative or other.negative,
            self.masked and other.masked,
        )

    def __neg__(self) -> Infinite:
        return Infinite(self.negative, self.positive, self.masked)


@dataclass(frozen=True, slots=True)
class Absorbed:
    """An infinity that does no harm.

    Attributes
    ----------
    through
        The ops whose results it stands in.
    by
        The ops that absorb it.
    """

    through: tuple[Node, ...]
    by: tuple[Node, ...]


NONE = Infinite()
_LARGEST = 65504.0  # FP16's
#: A rule's answer where an op makes something wrong of an infinity: NaN, or another finite value.
LOST = None

Inputs = Mapping[str, Infinite]  # by parameter; those of a list are taken together
Rule = Callable[[Node, Inputs], Infinite | None]


def _constant(node: Node, name: str) -> np.ndarray | None:
    source = node.fp32.inputs.get(name)
    return np.asarray(source.load()) if isinstance(source, Constant) else None


def _passes(node: Node, inputs: Inputs) -> Infinite | None:
    found = NONE
    for infinite in inputs.values():
        found = found | infinite
    return found


def _absorbs(node: Node, inputs: Inputs) -> Infinite | None:
    return NONE


def _clip(node: Node, inputs: Inputs) -> Infinite | None:
    """Bounds beyond FP16's range are infinities themselves."""
    low, high = _constant(node, "alpha"), _constant(node, "beta")
    x = inputs.get("x", NONE)
    return Infinite(
        x.positive and not (high is not None and float(high) <= _LARGEST),
        x.negative and not (low is not None and float(low) >= -_LARGEST),
        x.masked,
    )


def _add(node: Node, inputs: Inputs) -> Infinite | None:
    both = _passes(node, inputs)
    assert both is not None
    return LOST if len(inputs) > 1 and both.positive and both.negative else both


def _sub(node: Node, inputs: Inputs) -> Infinite | None:
    turned = {name: -value if name == "y" else value for name, value in inputs.items()}
    return _add(node, turned)


def _scaled(node: Node, inputs: Inputs) -> Infinite | None:
    """Times or over a constant of one sign, without zeros."""
    if len(inputs) > 1 or (node.op_type == "real_div" and "y" in inputs):
        return LOST
    ((name, infinite),) = inputs.items()
    factor = _constant(node, "y" if name == "x" else "x")
    if factor is None or not factor.size or not np.isfinite(factor).all():
        return LOST
    if (factor > 0).all():
        return infinite
    return -infinite if (factor < 0).all() else LOST


def _linear(node: Node, inputs: Inputs) -> Infinite | None:
    """``alpha * x + beta``."""
    alpha = _constant(node, "alpha")
    if set(inputs) != {"x"} or alpha is None or not (alpha > 0).all():
        return LOST
    return inputs["x"]


def _saturates_below(node: Node, inputs: Inputs) -> Infinite | None:
    """relu, elu, exp, softplus: a limit towards minus infinity, none towards infinity."""
    return Infinite(inputs["x"].positive, False, inputs["x"].masked)


def _maximum(node: Node, inputs: Inputs) -> Infinite | None:
    both = _passes(node, inputs)
    assert both is not None
    below = len(inputs) > 1 and all(value.negative for value in inputs.values())
    return Infinite(both.positive, below, both.masked)


def _minimum(node: Node, inputs: Inputs) -> Infinite | None:
    turned = _maximum(node, {name: -value for name, value in inputs.items()})
    return LOST if turned is None else -turned


def _compares(node: Node, inputs: Inputs) -> Infinite | None:
    """With something finite; two infinities of one sign would be taken for equal."""
    return NONE if len(inputs) == 1 else LOST


def _magnitude(node: Node, inputs: Inputs) -> Infinite | None:
    """abs, square: infinite wherever the input is."""
    return Infinite(bool(inputs["x"]), False, inputs["x"].masked)


def _grows(node: Node, inputs: Inputs) -> Infinite | None:
    """sqrt, log, gelu, silu, sums and means: infinity stays so; minus infinity gives NaN."""
    found = inputs.get("x", NONE)
    return LOST if found.negative or set(inputs) != {"x"} else found


def _sums(node: Node, inputs: Inputs) -> Infinite | None:
    found = inputs["x"]
    return LOST if found.positive and found.negative else found


def _largest(node: Node, inputs: Inputs) -> Infinite | None:
    """Minus infinity beside something finite is not the largest."""
    found = inputs["x"]
    return Infinite(found.positive, found.negative and not found.masked, found.masked)


def _smallest(node: Node, inputs: Inputs) -> Infinite | None:
    found = _largest(node, {"x": -inputs["x"]})
    return LOST if found is None else -found


def _beside(node: Node, inputs: Inputs) -> Infinite | None:
    """softmax, argmax: minus infinity beside something finite counts for nothing."""
    found = inputs["x"]
    return NONE if found.masked and not found.positive else LOST


def _attention(node: Node, inputs: Inputs) -> Infinite | None:
    mask = inputs.get("attn_mask", NONE)
    return NONE if len(inputs) == 1 and mask.masked and not mask.positive else LOST


_RULES: dict[str, Rule] = {
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
    **dict.fromkeys(
        ["atan", "erf", "relu6", "scaled_tanh", "sigmoid", "sigmoid_hard", "sign", "tanh"],
        _absorbs,
    ),
    **dict.fromkeys(["relu", "elu", "exp", "exp2", "softplus"], _saturates_below),
    **dict.fromkeys(["sqrt", "log", "gelu", "silu"], _grows),
    **dict.fromkeys(["reduce_sum", "reduce_mean"], _sums),
    **dict.fromkeys(["abs", "square"], _magnitude),
    **dict.fromkeys(["greater", "greater_equal", "less", "less_equal"], _compares),
    **dict.fromkeys(["equal", "not_equal"], _compares),
    **dict.fromkeys(["mul", "real_div"], _scaled),
    **dict.fromkeys(["softmax", "reduce_argmax"], _beside),
    "add": _add,
    "clip": _clip,
    "sub": _sub,
    "linear_activation": _linear,
    "leaky_relu": _linear,
    "maximum": _maximum,
    "minimum": _minimum,
    "reduce_max": _largest,
    "reduce_min": _smallest,
    "reduce_log_sum_exp": _largest,
    "scaled_dot_product_attention": _attention,
}


class Infinities:
    """Follows infinities through one function.

    Parameters
    ----------
    nodes
        The nodes that some output depends on, in execution order.
    masks
        Inputs of the function that decide what is masked, by slot: integers and truth values, and
        floats that hold no more than two different values.
    beyond
        Slots with values beyond FP16's range: infinite as soon as they are rounded to it.
    """

    def __init__(
        self,
        function: Function,
        nodes: Sequence[Node],
        masks: Collection[int],
        beyond: Mapping[int, Infinite],
    ) -> None:
        self._nodes = list(nodes)
        wanted: list[Source] = [*function.outputs.values(), *function.state_outputs.values()]
        self._outputs = {source.slot for source in wanted if isinstance(source, Ref)}
        given = {*function.inputs.values(), *function.states.values()}
        self._free = given.difference(masks)  # slots that depend on more than masks and constants
        self._beyond = {slot: self._placed(slot, found) for slot, found in beyond.items()}
        for node in nodes:
            if not self._free.isdisjoint(slots_read(node)):
                self._free.update(node.outputs)
            self._place_results(node)

    def _place_results(self, node: Node) -> None:
        """Say of a node's results beyond the range whether that is for what was masked before."""
        if not any(self._beyond.get(slot) for slot in node.outputs):
            return
        passed = None if node.blocks else self._ruled(node, self._read(node, node.fp32.inputs))
        for slot in node.outputs:
            found = self._beyond.get(slot)
            if found:
                self._beyond[slot] = self._new(slot, passed, found)

    def _new(self, slot: int, passed: Infinite | None, found: Infinite) -> Infinite:
        """What is infinite in a result, given what comes from the op's inputs."""
        passed = passed or NONE
        up, down = found.positive, found.negative
        made = Infinite(up and not passed.positive, down and not passed.negative)
        return passed | self._placed(slot, made)

    def _placed(self, slot: int, found: Infinite) -> Infinite:
        return Infinite(found.positive, found.negative, slot not in self._free)

    def _read(self, node: Node, sources: Mapping[str, Source]) -> dict[str, Infinite]:
        read = _by_parameter(sources, self._beyond)
        for name, lost in _constants_lost(node).items():
            read[name] = lost | read.get(name, NONE)
        return read

    def absorbed(self, node: Node, made: Infinite) -> Absorbed | None:
        """What absorbs what overflows at an op; None where something does not.

        Parameters
        ----------
        node
            The op, in FP16.
        made
            What is infinite in its results; ``masked`` is found here.
        """
        if node.blocks or node.fp16 is None:
            return None
        rounded = {
            name: [s for s in refs(source) if s.narrow] for name, source in node.fp16.inputs.items()
        }
        out = self._ruled(node, self._read(node, dict(rounded)))
        if out is None:
            return None
        out = self._new(node.outputs[0], out, made)
        return self._followed(node, out) if out else Absorbed((), (node,))

    def _followed(self, node: Node, out: Infinite) -> Absorbed | None:
        found = dict.fromkeys(node.outputs, out)
        through: list[Node] = [node]
        by: list[Node] = []
        for later in self._nodes[self._nodes.index(node) + 1 :]:
            taken = {slot: found[slot] for slot in slots_read(later) if slot in found}
            if not taken:
                continue
            inputs = _by_parameter(later.fp32.inputs, taken)
            result = None if later.blocks else self._ruled(later, inputs)
            if result is None:
                return None
            if result:
                found.update(dict.fromkeys(later.outputs, result))
            (through if result else by).append(later)
        return None if self._outputs & found.keys() else Absorbed(tuple(through), tuple(by))

    def _ruled(self, node: Node, inputs: Inputs) -> Infinite | None:
        given = {name: found for name, found in inputs.items() if found}
        if not given:
            return NONE
        rule = _RULES.get(node.op_type)
        found = None if rule is None else rule(node, given)
        if found and not self._still_masked(node, given):
            return Infinite(found.positive, found.negative)
        return found

    def _still_masked(self, node: Node, given: Inputs) -> bool:
        """Whether what else an op reads moves no masked elements about by the data."""
        deciding = (
            ref.slot
            for name in ("cond", "indices", "begin", "end")
            if name not in given
            for ref in refs(node.fp32.inputs.get(name))
        )
        return self._free.isdisjoint(deciding)


def _by_parameter(
    sources: Mapping[str, Source], found: Mapping[int, Infinite]
) -> dict[str, Infinite]:
    out: dict[str, Infinite] = {}
    for name, source in sources.items():
        for ref in refs(source):
            if ref.slot in found:
                out[name] = out.get(name, NONE) | found[ref.slot]
    return out


def _constants_lost(node: Node) -> dict[str, Infinite]:
    """Constants that are finite, and infinite as the cast pass writes them in FP16."""
    out: dict[str, Infinite] = {}
    forms = {} if node.fp16 is None else node.fp16.inputs
    for name, form in forms.items():
        given = node.fp32.inputs.get(name)
        if not isinstance(form, Constant) or not isinstance(given, Constant) or form is given:
            continue
        value = np.asarray(given.load())
        if value.dtype != np.float32 or not value.size:
            continue
        with np.errstate(over="ignore"):
            cast = np.asarray(form.load()).astype(np.float16)
        if cast.shape == value.shape:
            lost = np.isinf(cast) & np.isfinite(value)
            if lost.any():
                up, down = bool((lost & (value > 0)).any()), bool((lost & (value < 0)).any())
                out[name] = Infinite(up, down, True)
    return out
