"""Which ops cannot be left in FP16, since what they compute leaves its range, or soon will.

An op overflows where a value that it rounds, on the way in or out, reaches what its numerics
profile turns into infinity. Whether the next input's will is estimated from the largest magnitudes
of the samples (:class:`mpsearch.evaluation.reach.Magnitude`). An overflow that the graph absorbs
for every input (:mod:`mpsearch.program.infinity`) is no reason to keep an op in FP32. Neither is a
small result, but where something is divided by it: that the next input's rounds to 0 is estimated
in the same way. Where a sample's does, the loss shows what it does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..evaluation.incremental import Incremental
from ..evaluation.reach import Magnitude, Reach
from ..numerics.formats import FP16
from ..program.absorption import Infinite
from ..program.graph import Constant, Node, refs
from ..program.infinity import Absorbed, Infinities

#: How likely an op left in FP16 may be to overflow on the next input.
CHANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Risk:
    """How near an op comes to overflowing in FP16.

    Attributes
    ----------
    headroom
        What FP16 holds, over the largest magnitude that the op rounds in the samples; below 1 where
        it overflowed.
    expected
        The same over what the next input is expected to stay below.
    absorbed
        What absorbs the overflow for every input; None where something does not, or there is none.
    sample
        Which sample comes nearest.
    vanishes
        Whether it is the lower end of the range that is near, for what something is divided by.
    """

    headroom: float
    expected: float
    absorbed: Absorbed | None = None
    vanishes: bool = False
    sample: int = 0

    @property
    def seen(self) -> bool:
        """Whether it overflowed in the samples."""
        return self.headroom <= 1

    @property
    def overflows(self) -> bool:
        """Whether it overflowed, or may on the next input."""
        return self.expected <= 1


class Range:
    """What the ops of a program reach, and what that means for them in FP16.

    Attributes
    ----------
    reach
        What the samples reach.
    risks
        Of the candidate ops of the outer block, by index.
    """

    def __init__(self, engine: Incremental, reach: Reach) -> None:
        self._engine, self.reach = engine, reach
        self.risks = _risks(engine, reach)

    def take_in(self, samples: Sequence[int]) -> set[int]:
        """Look at more samples; the ops that cannot be left in FP16 by all that is known now."""
        for _ in self.reach.run(samples):
            pass
        self.risks = _risks(self._engine, self.reach)
        return self.refused

    @property
    def largest(self) -> dict[int, float]:
        """The largest magnitude that each candidate op of the outer block computes, by index."""
        sides = self.reach.above, self.reach.below
        return {
            node.candidate: max(
                (side[s].largest for s in node.outputs for side in sides if s in side), default=0.0
            )
            for node in self._engine.nodes
            if node.candidate is not None
        }

    def inner(self, node: Node) -> float:
        """What an op's largest inner step is expected to be of what FP16 holds; 0 if not known."""
        found = _inner(self._engine, self.reach, node)
        return max((self.reach.next(m, CHANCE) for m in found), default=0.0)

    @property
    def refused(self) -> set[int]:
        """The ops that cannot be left in FP16."""
        return {op for op, risk in self.risks.items() if risk.overflows and risk.absorbed is None}

    @property
    def harmless(self) -> frozenset[str]:
        """Names of the ops that may be infinite or NaN: in FP32 as well, or absorbed."""
        absorbed = (risk.absorbed for risk in self.risks.values() if risk.absorbed is not None)
        through = {node.name for found in absorbed for node in found.through}
        infinite = self.reach.infinite
        lost = (n.name for n in self._engine.nodes if not infinite.isdisjoint(n.outputs))
        return frozenset(through.union(lost))


def _risks(engine: Incremental, reach: Reach) -> dict[int, Risk]:
    slots = {*reach.above, *reach.below}
    beyond = {slot: _beyond(reach, slot, FP16.overflows) for slot in slots}
    sizes = {
        slot: max(reach.next(side[slot], CHANCE) for side in (reach.above, reach.below))
        for slot in slots
    }
    infinities = Infinities(engine.function, engine.nodes, _masks(engine), beyond, sizes)
    return {
        node.candidate: _risk(engine, reach, infinities, node)
        for node in engine.nodes
        if node.candidate is not None and node.fp16 is not None and not node.blocks
    }


def _risk(engine: Incremental, reach: Reach, infinities: Infinities, node: Node) -> Risk:
    assert node.fp16 is not None
    most = ceiling(engine, node)
    limits = dict.fromkeys(node.outputs, most)
    for source in node.fp16.inputs.values():
        limits |= {ref.slot: FP16.overflows for ref in refs(source) if ref.narrow}
    # What the op rounds, as shares of what FP16 holds: in the samples, and in the next one.
    shares = [
        (side[slot].largest / limit, reach.next(side[slot], CHANCE) / limit, side[slot].at)
        for slot, limit in limits.items()
        for side in (reach.above, reach.below)
        if slot in side
    ]
    inner = [(m.largest, reach.next(m, CHANCE), m.at) for m in _inner(engine, reach, node)]
    largest, _, at = max([(0.0, 0.0, 0), *shares, *inner])
    expected = max((share for _, share, _ in [*shares, *inner]), default=0.0)
    risk = Risk(_over(largest), _over(expected), sample=reach.samples[at] if largest else 0)
    seen, next_ = _vanishing(reach, node)
    if not risk.overflows and next_ >= 1:
        return Risk(_over(seen), _over(next_), vanishes=True)
    if not risk.overflows or any(share >= 1 for _, share, _ in inner):
        return risk
    made = Infinite()
    for slot in node.outputs:
        made = made | _beyond(reach, slot, most)
    return replace(risk, absorbed=infinities.absorbed(node, made))


def _vanishing(reach: Reach, node: Node) -> tuple[float, float]:
    """How near what is divided by comes to 0 where an op rounds it: in the samples, and the next.

    As shares of what rounds to 0. What does so in a sample is left to the loss.
    """
    sources = node.fp32.inputs.values()
    read = {ref.slot for source in sources for ref in refs(source)}
    slots = {*node.outputs, *(s for s in read if node.name in reach.divide.get(s, ()))}
    found = [m for slot in slots if (m := reach.divisors.get(slot)) is not None and m.largest < 1]
    shares = [(m.largest, reach.next(m, CHANCE)) for m in found]
    return max(shares, key=lambda share: share[1], default=(0.0, 0.0))


def _over(share: float) -> float:
    return 1 / share if share else math.inf


def _beyond(reach: Reach, slot: int, ceiling: float) -> Infinite:
    nothing = Magnitude()
    return Infinite(
        reach.next(reach.above.get(slot, nothing), CHANCE) >= ceiling,
        reach.next(reach.below.get(slot, nothing), CHANCE) >= ceiling,
        least=ceiling,
    )


def ceiling(engine: Incremental, node: Node) -> float:
    """The magnitude from which on an op's result is infinite in FP16, in the worst profile."""
    source = node.fp32.inputs.get("weight")
    weight = engine.runtimes[0].source(source, {}) if isinstance(source, Constant) else None
    return min(r.profile.ceiling(node.op_type, weight) for r in engine.runtimes)


def _inner(engine: Incremental, reach: Reach, node: Node) -> list[Magnitude]:
    keys = [(node.candidate, place) for place in range(engine.profiles)]
    return [reach.inner[key] for key in keys if key in reach.inner]


def _masks(engine: Incremental) -> set[int]:
    """Inputs that decide what is masked: integers, truth values, floats of two values at most."""
    slots = {**engine.function.inputs, **engine.function.states}
    seen: dict[str, set[float]] = {name: set() for name in slots}
    masks = set(slots)
    for place in range(engine.samples):
        sample: Mapping[str, object] = engine.sample(place)
        for name in list(masks):
            value = sample[name]
            if isinstance(value, Tensor) and value.is_floating_point():
                seen[name] |= set(torch.unique(value).tolist()[:3])
                if len(seen[name]) > 2:
                    masks.discard(name)
    return {slots[name] for name in masks}
