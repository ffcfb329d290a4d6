"""How far each result reaches: its largest magnitude sample by sample, and the next one's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from scipy import special
from torch import Tensor

from ..executor.loop import Step
from ..executor.ops import OPS
from ..executor.runtime import gather
from ..program.graph import Node
from ..program.precision import Precision
from .incremental import Incremental

#: What is taken for known of the spread of log magnitudes between samples before any was seen, and
#: for how many samples it counts. In the models looked at the spread is 0.02 to 0.2.
_PRIOR_SPREAD, _PRIOR_SAMPLES = 0.1, 3
#: However few the samples, the next is not expected to reach beyond so many times the largest.
_MOST = 4.0
#: Magnitudes below are all the same here: no limit is near.
_LEAST = 1e-3
_EULER = 0.5772156649


@dataclass(slots=True)
class Magnitude:
    """The largest magnitudes of some quantity, one a sample.

    Maxima over many elements follow a Gumbel distribution in their logarithm (Gumbel, "Statistics
    of Extremes", 1958), fitted here by its moments, with Student's factor for how little is known
    of the spread.
    """

    largest: float = 0.0
    count: int = 0
    mean: float = 0.0  # of the natural logarithms
    squares: float = 0.0  # sum of their squared distances from the mean

    def add(self, value: float) -> None:
        """Take in one sample's."""
        self.largest = max(self.largest, value)
        log = math.log(max(value, _LEAST))
        self.count += 1
        step = log - self.mean
        self.mean += step / self.count
        self.squares += step * (log - self.mean)

    def next(self, chance: float) -> float:
        """What the next sample's is expected to exceed with no more than this chance.

        What is the same in every sample (of two or more) does not depend on the input, and is
        expected to stay so.
        """
        if not self.count or not math.isfinite(self.largest):
            return self.largest
        if self.count > 1 and self.squares < 1e-12:
            return self.largest
        freedom = self.count - 1 + _PRIOR_SAMPLES
        spread = math.sqrt((self.squares + _PRIOR_SAMPLES * _PRIOR_SPREAD**2) / freedom)
        factor = _deviations(chance) * _student(chance, freedom) * math.sqrt(1 + 1 / self.count)
        reached = math.exp(min(self.mean + factor * spread, 700.0))
        return min(max(self.largest, reached), _MOST * self.largest)


def _deviations(chance: float) -> float:
    """By how many standard deviations a Gumbel variable exceeds its mean with this chance."""
    return (-math.log(-math.log1p(-chance)) - _EULER) * math.sqrt(6) / math.pi


@cache
def _student(chance: float, freedom: int) -> float:
    return float(special.stdtrit(freedom, 1 - chance) / special.ndtri(1 - chance))


@dataclass(slots=True)
class Reach:
    """What the samples reached in FP32.

    Attributes
    ----------
    above, below
        Of each result, by slot: the largest value above 0, and below it.
    inner
        By candidate op and profile: the largest inner step, as a share of what the profile holds.
    infinite
        Results that are not finite in FP32 itself, by slot.
    """

    above: dict[int, Magnitude] = field(default_factory=dict)
    below: dict[int, Magnitude] = field(default_factory=dict)
    inner: dict[tuple[int, int], Magnitude] = field(default_factory=dict)
    infinite: set[int] = field(default_factory=set)

    def add(self, slot: int, value: Tensor) -> None:
        """Take in a result on one sample."""
        if not value.numel():
            return
        low, high = (float(v) for v in torch.aminmax(value))
        if not (math.isfinite(low) and math.isfinite(high)):
            self.infinite.add(slot)
            value = value[torch.isfinite(value)]
            low, high = (float(v) for v in torch.aminmax(value)) if value.numel() else (0.0, 0.0)
        self.above.setdefault(slot, Magnitude()).add(max(high, 0.0))
        self.below.setdefault(slot, Magnitude()).add(max(-low, 0.0))


@contextmanager
def watched(engine: Incremental) -> Iterator[Reach]:
    """What every op of the outer block reaches while all-FP32 runs on all samples."""
    reach = Reach()
    for sample in range(engine.samples):
        _take_inputs(engine, reach, sample)
    engine.watch = partial(_see, engine, reach)
    try:
        yield reach
    finally:
        engine.watch = None


def look_at(engine: Incremental, reach: Reach, sample: int) -> None:
    """Take in what one more sample reaches."""
    _take_inputs(engine, reach, sample)
    engine.watch = partial(_see, engine, reach)
    try:
        engine.outputs(Precision.all_fp32(engine.candidates), sample)
    finally:
        engine.watch = None


def _take_inputs(engine: Incremental, reach: Reach, sample: int) -> None:
    slots = {**engine.function.inputs, **engine.function.states}
    for name, value in engine.sample(sample).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            reach.add(slots[name], value)


def _see(
    engine: Incremental,
    reach: Reach,
    step: Step,
    env: Mapping[int, Any],
    results: tuple[Any, ...],
) -> None:
    for slot, value in zip(step.node.outputs, results, strict=True):
        if isinstance(value, Tensor) and value.is_floating_point():
            reach.add(slot, value)
    if step.node.candidate is not None and not step.node.blocks:
        _look_inside(engine, step.node, env, reach)


def _look_inside(engine: Incremental, node: Node, env: Mapping[int, Any], reach: Reach) -> None:
    arguments: dict[str, Any] | None = None
    assert node.candidate is not None
    for place, runtime in enumerate(engine.runtimes):
        if not runtime.profile.looks_inside(node.op_type):
            continue
        op = OPS[node.op_type]
        if arguments is None:
            arguments = gather(
                node.fp32,
                op,
                lambda _, source: engine.runtimes[0].source(source, env),
                lambda _, source: engine.runtimes[0].value(source, env),
            )
        share = runtime.profile.inner(node.op_type, op.function, arguments)
        reach.inner.setdefault((node.candidate, place), Magnitude()).add(share)
