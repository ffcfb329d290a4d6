"""Which ops cannot be left in FP16, since what they compute leaves its range, or soon will.

An op overflows where a value that it rounds, on the way in or out, reaches what its numerics
profile turns into infinity. Whether the next input's will is estimated from the largest magnitudes
of the samples (:class:`mpsearch.evaluation.reach.Magnitude`). An overflow that the graph absorbs
for every input (:mod:`mpsearch.program.infinity`) is no reason to keep an op in FP32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
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
    """An op that overflows in FP16, or is near it.

    Attributes
    ----------
    op
        The candidate's index.
    headroom
        What FP16 holds, over the largest magnitude in the samples; below 1 where it overflowed.
    expected
        The same over what the next input is expected to stay below.
    absorbed
        What absorbs the overflow for every input; None where something does not.
    """

    op: int
    headroom: float
    expected: float
    absorbed: Absorbed | None

    @property
    def seen(self) -> bool:
        """Whether it overflowed in the samples."""
        return self.headroom <= 1


class Range:
    """What the ops of a program reach, and what that means for them in FP16.

    Attributes
    ----------
    risks
        The ops that overflow, or may on the next input, by candidate index.
    headroom
        What FP16 holds, over the largest magnitude that an op rounds in the samples, and over what
        the next input is expected to stay below, by candidate index.
    """

    def __init__(self, engine: Incremental, reach: Reach) -> None:
        self._engine, self._reach = engine, reach
        self._conclude()

    def _conclude(self) -> None:
        engine, reach = self._engine, self._reach
        self.risks = risks(engine, reach)
        self.headroom = headrooms(engine, reach)
        self._lost = {
            node.name for node in engine.nodes if not reach.infinite.isdisjoint(node.outputs)
        }

    def take_in(self, sample: int) -> set[int]:
        """Look at one more sample; the ops that cannot be left in FP16 by all that is known now."""
        list(self._reach.run([sample]))
        self._conclude()
        return self.refused

    @property
    def refused(self) -> set[int]:
        """The ops that cannot be left in FP16."""
        return {op for op, risk in self.risks.items() if risk.absorbed is None}

    @property
    def harmless(self) -> frozenset[str]:
        """Names of the ops that may be infinite or NaN: in FP32 as well, or absorbed."""
        through = (r.absorbed.through for r in self.risks.values() if r.absorbed is not None)
        return frozenset(self._lost.union(node.name for nodes in through for node in nodes))


def risks(engine: Incremental, reach: Reach, chance: float = CHANCE) -> dict[int, Risk]:
    """The candidate ops of the outer block that overflow or may, by index."""
    slots = {*reach.above, *reach.below}
    beyond = {slot: _beyond(reach, slot, FP16.overflows, chance) for slot in slots}
    sizes = {
        slot: max(reach.next(side[slot], chance) for side in (reach.above, reach.below))
        for slot in slots
    }
    infinities = Infinities(engine.function, engine.nodes, _masks(engine), beyond, sizes)
    found = {}
    for node in engine.nodes:
        if node.candidate is not None and node.fp16 is not None and not node.blocks:
            shares = _shares(engine, reach, node, chance)
            if shares and max(expected for _, expected in shares) >= 1:
                found[node.candidate] = _risk(engine, reach, infinities, node, shares, chance)
    return found


def _risk(
    engine: Incremental,
    reach: Reach,
    infinities: Infinities,
    node: Node,
    shares: Sequence[tuple[float, float]],
    chance: float,
) -> Risk:
    assert node.candidate is not None
    made = Infinite()
    for slot in node.outputs:
        made = made | _beyond(reach, slot, _ceiling(engine, node), chance)
    deep = any(reach.next(m, chance) >= 1 for m in _inner(engine, reach, node))
    absorbed = None if deep else infinities.absorbed(node, made)
    largest, expected = (max(column) for column in zip(*shares, strict=True))
    return Risk(node.candidate, _over(largest), _over(expected), absorbed)


def headrooms(engine: Incremental, reach: Reach) -> dict[int, tuple[float, float]]:
    """What FP16 holds over what each op rounds, by candidate index (see :class:`Range`)."""
    found = {}
    for node in engine.nodes:
        if node.candidate is not None and node.fp16 is not None and not node.blocks:
            shares = _shares(engine, reach, node, CHANCE) or [(0.0, 0.0)]
            largest, expected = (max(column) for column in zip(*shares, strict=True))
            found[node.candidate] = _over(largest), _over(expected)
    return found


def _over(share: float) -> float:
    return 1 / share if share else math.inf


def _shares(
    engine: Incremental, reach: Reach, node: Node, chance: float
) -> list[tuple[float, float]]:
    """What an op computes, as shares of what FP16 holds: in the samples, and in the next one."""
    assert node.fp16 is not None
    limits = dict.fromkeys(node.outputs, _ceiling(engine, node))
    for source in node.fp16.inputs.values():
        limits |= {ref.slot: FP16.overflows for ref in refs(source) if ref.narrow}
    found = [
        (side[slot].largest / limit, reach.next(side[slot], chance) / limit)
        for slot, limit in limits.items()
        for side in (reach.above, reach.below)
        if slot in side
    ]
    return found + [(m.largest, reach.next(m, chance)) for m in _inner(engine, reach, node)]


def _beyond(reach: Reach, slot: int, ceiling: float, chance: float) -> Infinite:
    nothing = Magnitude()
    return Infinite(
        reach.next(reach.above.get(slot, nothing), chance) >= ceiling,
        reach.next(reach.below.get(slot, nothing), chance) >= ceiling,
        least=ceiling,
    )


def _ceiling(engine: Incremental, node: Node) -> float:
    return min(r.profile.ceiling(node.op_type, _taps(node)) for r in engine.runtimes)


def _inner(engine: Incremental, reach: Reach, node: Node) -> list[Magnitude]:
    keys = [(node.candidate or 0, place) for place in range(engine.profiles)]
    return [reach.inner[key] for key in keys if key in reach.inner]


def _taps(node: Node) -> int:
    weight = node.fp32.inputs.get("weight")
    if not node.op_type.startswith("conv") or not isinstance(weight, Constant):
        return 2
    return int(np.prod(np.shape(weight.load())[2:], dtype=int))


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
