"""How large and how small tensors are, as far as that matters to their exponents."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ..evaluation.incremental import Incremental
from ..evaluation.reach import Magnitude, least
from ..executor.loop import Step
from ..numerics.formats import FP16
from ..program.precision import Precision
from ..search.risk import CHANCE, Range, ceiling
from .exponents import Magnitudes


def magnitudes(
    engine: Incremental, range_: Range, samples: Collection[int]
) -> dict[int, Magnitudes]:
    """The magnitudes of all float tensors, by slot; runs the samples once more in FP32."""
    every = Precision.all_fp32(engine.candidates)
    low: dict[int, tuple[float, float]] = {}
    for _, seen in engine.several(every, list(samples), 0, _look):
        for slot, found in seen.items():
            typical, smallest = found.tolist()
            before = low.get(slot, (math.inf, math.inf))
            low[slot] = min(before[0], typical), min(before[1], smallest)
    reach, harmless, nothing = range_.reach, range_.harmless, Magnitude()
    limits = {
        slot: math.inf if node.name in harmless else ceiling(engine, node)
        for node in engine.function.nodes
        for slot in node.outputs
    }
    return {
        slot: Magnitudes(
            max(reach.next(side.get(slot, nothing), CHANCE) for side in (reach.above, reach.below)),
            limits.get(slot, FP16.overflows),
            *low.get(slot, (0.0, math.inf)),
        )
        for slot in {*reach.above, *reach.below}
    }


def _look(step: Step, env: Mapping[int, Any], results: tuple[Any, ...]) -> dict[Any, Tensor]:
    return {
        slot: _low(value)
        for slot, value in zip(step.node.outputs, results, strict=True)
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel()
    }


def _low(value: Tensor) -> Tensor:
    """The root of the mean square, and the smallest magnitude above 0."""
    size = value.float().abs()
    size = torch.where(torch.isfinite(size), size, 0.0)
    largest = size.max().clamp(min=1e-30)
    typical = largest * (size / largest).square().mean().sqrt()
    return torch.stack([typical, least(size)])
