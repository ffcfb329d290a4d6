"""What becomes of an infinity: followed through the program, for every input.

Where FP16 turns a finite value into an infinity, what reads it may still give what it would have
given: tanh(70,000) is 1, and so is tanh(infinity). Such an op *absorbs* the infinity. Others pass
it on, or make NaN or a wrong finite value of it: x / infinity is 0, and x / 70,000 is not. This is
decided by the ops' definitions, not by samples; how large the true value is at least goes along, so
that tanh(1e-6 * infinity) is known not to be what tanh(0.07) is.

Softmax needs one thing more: minus infinity counts as absorbed only where *masked*, that is where
integers, truth values and constants alone decide which elements are infinite. What is not masked is
then finite beside it, as long as not everything is masked: users are told (:attr:`Absorbed.masks`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .absorption import LOST, MASKED, NONE, RULES, Infinite, Inputs
from .graph import Constant, Function, Node, Ref, Source, refs, slots_read


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

    @property
    def masks(self) -> bool:
        """Whether that is so only where something is left unmasked: softmax of nothing is NaN."""
        return any(node.op_type in MASKED for node in self.by)


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
    sizes
        The largest magnitude that is expected of each slot.
    """

    def __init__(
        self,
        function: Function,
        nodes: Sequence[Node],
        masks: Collection[int],
        beyond: Mapping[int, Infinite],
        sizes: Mapping[int, float],
    ) -> None:
        self._sizes = sizes
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
        made = replace(
            found, positive=up and not passed.positive, negative=down and not passed.negative
        )
        return passed | self._placed(slot, made)

    def _placed(self, slot: int, found: Infinite) -> Infinite:
        return replace(found, masked=slot not in self._free)

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

    def _ruled(self, node: Node, inputs: Mapping[str, Infinite]) -> Infinite | None:
        given = {name: found for name, found in inputs.items() if found}
        if not given:
            return NONE
        rule = RULES.get(node.op_type)
        if rule is None:
            return LOST
        found = rule(Inputs(node, given, lambda name: self._size(node.fp32.inputs.get(name))))
        if found and not self._still_masked(node, given):
            return replace(found, masked=False)
        return found

    def _size(self, source: Source) -> float:
        """The largest magnitude of an input; infinite where it is not known."""
        if isinstance(source, Constant):
            value = np.asarray(source.load())
            return float(np.abs(value).max()) if value.dtype.kind in "fiu" and value.size else 0.0
        return max((self._sizes.get(ref.slot, math.inf) for ref in refs(source)), default=0.0)

    def _still_masked(self, node: Node, given: Mapping[str, Infinite]) -> bool:
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
