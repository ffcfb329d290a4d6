"""How far each result reaches: its largest magnitude sample by sample, and the next one's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy import special
from torch import Tensor

from ..executor.loop import Step
from ..executor.ops import OPS
from ..executor.runtime import gather
from ..forking import each
from ..numerics.formats import FP16
from ..numerics.profiles import Profile
from ..program.divisors import divisors
from ..program.graph import Node
from ..program.precision import Precision
from .incremental import Incremental
from .metrics import Outputs

#: The spread of log magnitudes between samples where nothing is known of it, and at most; and for
#: how many samples counts what other quantities of the model show of it.
_PRIOR_SPREAD, _PRIOR_SAMPLES = 0.1, 3
#: Spreads below are not believed, however many values show them.
_LEAST_SPREAD = 0.02
#: However few the samples, the next is not expected to reach beyond so many times the largest.
_MOST = 4.0
#: Magnitudes below are all the same here: no limit is near.
_LEAST = 1e-3
_EULER = 0.5772156649
#: How many samples each process runs before the first is given.
_AT_ONCE = 128


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
    at: int = 0  # the place of the sample that has the largest

    def add(self, value: float) -> None:
        """Take in one sample's."""
        if value > self.largest:
            self.largest, self.at = value, self.count
        log = math.log(max(value, _LEAST))
        self.count += 1
        step = log - self.mean
        self.mean += step / self.count
        self.squares += step * (log - self.mean)

    @property
    def varies(self) -> bool:
        """Whether it is seen to differ between samples."""
        return self.count > 1 and self.squares > 1e-12 and math.isfinite(self.largest)

    @property
    def spread(self) -> float:
        """The standard deviation of the logarithms."""
        return math.sqrt(self.squares / (self.count - 1))

    def next(self, chance: float, usual: float = _PRIOR_SPREAD) -> float:
        """What the next sample's is expected to exceed with no more than this chance.

        ``usual`` is the spread that quantities of this model have; it counts for a few samples.
        What is the same in every sample (of two or more) does not depend on the input, and is
        expected to stay so.
        """
        if not self.count or not math.isfinite(self.largest):
            return self.largest
        if self.count > 1 and not self.varies:
            return self.largest
        freedom = self.count - 1 + _PRIOR_SAMPLES
        spread = math.sqrt((self.squares + _PRIOR_SAMPLES * usual**2) / freedom)
        factor = _deviations(chance) * _student(chance, freedom) * math.sqrt(1 + 1 / self.count)
        reached = math.exp(min(self.mean + factor * spread, 700.0))
        return min(max(self.largest, reached), _MOST * self.largest)


def _deviations(chance: float) -> float:
    """By how many standard deviations a Gumbel variable exceeds its mean with this chance."""
    return (-math.log(-math.log1p(-chance)) - _EULER) * math.sqrt(6) / math.pi


@cache
def _student(chance: float, freedom: int) -> float:
    return float(special.stdtrit(freedom, 1 - chance) / special.ndtri(1 - chance))


_Arrays = dict[Any, np.ndarray]
_Seen = dict[Any, Tensor]


class Reach:
    """What the samples reach in FP32.

    Attributes
    ----------
    above, below
        Of each result, by slot: the largest value above 0, and below it.
    inner
        By candidate op and profile: the largest inner step, as a share of what the profile holds.
    divide
        Slots that something is divided by, with the names of the ops that do it.
    divisors
        Of results that something is divided by, by slot: what FP16 rounds to 0, as a share of the
        smallest magnitude above that.
    infinite
        Results that are not finite in FP32 itself, by slot.
    samples
        Those that were looked at, in order: :attr:`Magnitude.at` is a place among them.
    """

    def __init__(self, engine: Incremental) -> None:
        self.above: dict[int, Magnitude] = {}
        self.below: dict[int, Magnitude] = {}
        self.inner: dict[tuple[int, int], Magnitude] = {}
        self.divisors: dict[int, Magnitude] = {}
        self.infinite: set[int] = set()
        self.samples: list[int] = []
        self.divide = divisors(engine.function, FP16.vanishes)
        self._engine = engine
        self._function = engine.function
        self._usual: float | None = None

    def run(self, samples: Sequence[int], jobs: int = 1) -> Iterator[Outputs]:
        """The outputs of all-FP32 in turn, with what is reached on the way taken in.

        With several ``jobs`` so many processes each run some samples before the first is given.
        """
        engine = self._engine
        self._usual = None
        for sample, (outputs, seen) in zip(samples, self._looked_at(samples, jobs), strict=True):
            self.samples.append(sample)
            slots = {**self._function.inputs, **self._function.states}
            given = {slots[name]: value for name, value in engine.sample(sample).items()}
            for slot, value in given.items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    self._take(slot, _extremes(value))
            for key, found in seen.items():
                self._take(key, found)
            yield outputs

    def _looked_at(self, samples: Sequence[int], jobs: int) -> Iterator[tuple[Outputs, _Seen]]:
        """The outputs of each sample, and what is reached on the way."""
        if jobs == 1:
            engine = self._engine
            every = Precision.all_fp32(engine.candidates)
            yield from engine.several(every, samples, 0, self._look)
            return

        def run(part: Sequence[int]) -> list[tuple[_Arrays, _Arrays]]:
            return [(_arrays(out), _arrays(seen)) for out, seen in self._looked_at(part, 1)]

        for start in range(0, len(samples), _AT_ONCE * jobs):
            few = samples[start : start + _AT_ONCE * jobs]
            parts = [few[k::jobs] for k in range(min(jobs, len(few)))]
            made = each(run, parts, jobs)
            for place in range(len(few)):
                out, seen = made[place % len(parts)][place // len(parts)]
                yield _tensors(out), _tensors(seen)

    def next(self, magnitude: Magnitude, chance: float) -> float:
        """What the next sample's is expected to exceed with no more than this chance."""
        if self._usual is None:
            spreads = [
                m.spread for side in (self.above, self.below) for m in side.values() if m.varies
            ]
            usual = statistics.median(spreads) if spreads else _PRIOR_SPREAD
            self._usual = min(max(usual, _LEAST_SPREAD), _PRIOR_SPREAD)
        return magnitude.next(chance, self._usual)

    def _look(
        self, step: Step, env: Mapping[int, Any], results: tuple[Any, ...]
    ) -> dict[Any, Tensor]:
        seen: dict[Any, Tensor] = {
            slot: _extremes(value)
            for slot, value in zip(step.node.outputs, results, strict=True)
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel()
        }
        node = step.node
        for slot, value in zip(node.outputs, results, strict=True):
            if slot in self.divide and slot in seen:
                seen["divides", slot] = least(value)
        if node.candidate is not None and not node.blocks:
            for place, runtime in enumerate(self._engine.runtimes):
                if runtime.profile.looks_inside(node.op_type):
                    seen[node.candidate, place] = self._inside(node, runtime.profile, env)
        return seen

    def _inside(self, node: Node, profile: Profile, env: Mapping[int, Any]) -> Tensor:
        runtime, op = self._engine.runtimes[0], OPS[node.op_type]
        arguments = gather(
            node.fp32,
            op,
            lambda _, source: runtime.source(source, env),
            lambda _, source: runtime.value(source, env),
        )
        return profile.inner(node.op_type, op.function, arguments)

    def _take(self, key: Any, found: Tensor) -> None:
        if isinstance(key, tuple) and key[0] == "divides":
            self.divisors.setdefault(key[1], Magnitude()).add(FP16.vanishes / float(found))
            return
        if isinstance(key, tuple):
            self.inner.setdefault(key, Magnitude()).add(float(found))
            return
        low, high, finite = found.tolist()
        if not finite:
            self.infinite.add(key)
        self.above.setdefault(key, Magnitude()).add(max(high, 0.0))
        self.below.setdefault(key, Magnitude()).add(max(-low, 0.0))


def _extremes(value: Tensor) -> Tensor:
    """The least and the largest finite value, and whether all are finite."""
    low, high = torch.aminmax(value.float())
    finite = torch.isfinite(low) & torch.isfinite(high)
    batched = torch._C._functorch.is_batchedtensor(finite)  # its values are not to be looked at
    if batched or not finite:
        low, high = torch.aminmax(torch.where(torch.isfinite(value), value, 0.0).float())
    return torch.stack([low, high, finite.float()])


def least(value: Tensor) -> Tensor:
    """The smallest magnitude above 0; infinite where there is none."""
    size = value.float().abs()
    return torch.where(size > 0, size, math.inf).min()


def _arrays(values: Mapping[Any, Tensor]) -> _Arrays:
    """For another process: torch would share the memory of tensors with one that may be gone."""
    return {name: value.numpy() for name, value in values.items()}


def _tensors(values: _Arrays) -> _Seen:
    return {name: torch.from_numpy(value) for name, value in values.items()}
