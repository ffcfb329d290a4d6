"""From a precision and a sample to an error."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..program.precision import Precision
from .incremental import Incremental
from .metrics import Metric, Outputs
from .sketch import Sketch

#: Computes the outputs of a precision for one sample, both by name.
Compute = Callable[[Precision, Mapping[str, Tensor]], Outputs]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What running a precision on a sample gave.

    Attributes
    ----------
    loss
        The error, smaller is better, the worst over the numerics profiles.
    exact
        Whether all profiles were run; the loss is a lower bound otherwise.
    nonfinite
        Names of the ops whose FP16 results are infinite or NaN, in execution order.
    errors
        For each profile that was run, the sketched error of the outputs
        (:class:`mpsearch.evaluation.sketch.Sketch`), float32; None where it is not finite.
    executions, seconds
        Ops run, and wall time.
    """

    loss: float
    exact: bool = True
    nonfinite: tuple[str, ...] = ()
    errors: tuple[np.ndarray | None, ...] = ()
    executions: int = 0
    seconds: float = 0.0


class Evaluator:
    """Evaluates precisions against references. No result depends on the calls before it.

    Where a metric is of all inputs together (``top1``, a task metric) they count as one sample.

    Parameters
    ----------
    engine
        Runs the program on the inputs.
    references
        For each input, output name to tensor: the PyTorch model in FP32.
    metric, targets
        The error measure, and what a task metric compares with.
    seed
        For the sketch of errors.
    compute
        Computes outputs in place of the engine, on a device.
    """

    def __init__(
        self,
        engine: Incremental,
        references: Sequence[Outputs],
        metric: Metric,
        targets: Sequence[Any] = (),
        seed: int = 0,
        compute: Compute | None = None,
    ) -> None:
        self.engine = engine
        self.references = list(references)
        self.metric = metric
        self.targets = list(targets)
        self.sketch = Sketch(seed)
        self.compute = compute

    @property
    def by_sample(self) -> bool:
        """Whether every input has a loss of its own."""
        return self.metric.combine == "max"

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return len(self.references) if self.by_sample else 1

    def add(self, sample: Mapping[str, Any], reference: Outputs) -> int:
        """Take in one more sample; its index. Only where every input has a loss of its own."""
        self.references.append(reference)
        return self.engine.add(sample)

    def evaluate(
        self, precision: Precision, sample: int, stop_above: float = math.inf
    ) -> Evaluation:
        """Run a precision on one sample.

        ``stop_above`` skips the remaining numerics profiles once the loss is above it.

        Raises
        ------
        Stop
            If the run is to end.
        """
        started, before = time.perf_counter(), self.engine.executions
        inputs = [sample] if self.by_sample else range(len(self.references))
        worst = -math.inf
        nonfinite: dict[str, None] = {}
        errors = []
        profiles = self._profiles(precision)
        for profile in range(profiles):
            runs = []
            for place in inputs:
                outputs, names = self._run(precision, place, profile)
                runs.append(outputs)
                nonfinite |= dict.fromkeys(names)
                errors.append(self.sketch(self.references[place], outputs))
            references = [self.references[place] for place in inputs]
            worst = max(worst, self.metric.whole(references, runs, self.targets))
            if worst > stop_above or worst == math.inf:
                break
        exact = profile == profiles - 1 or worst == math.inf
        ran, seconds = self.engine.executions - before, time.perf_counter() - started
        return Evaluation(worst, exact, tuple(nonfinite), tuple(errors), ran, seconds)

    def evaluate_together(
        self, precision: Precision, samples: Sequence[int]
    ) -> Iterator[Evaluation]:
        """Run a precision on several samples in turn, stacked where that is faster.

        Losses are those of :meth:`evaluate`, without the sketched errors; no result on the way is
        remembered.

        Raises
        ------
        Stop
            If the run is to end.
        """
        if not self.by_sample or self.compute is not None:
            for sample in samples:
                yield self.evaluate(precision, sample)
            return
        runs = [
            self.engine.several(precision, samples, profile, finite=True)
            for profile in range(self._profiles(precision))
        ]
        started, before = time.perf_counter(), self.engine.executions
        for sample, found in zip(samples, zip(*runs, strict=True), strict=True):
            reference = [self.references[sample]]
            worst = max(self.metric.whole(reference, [outputs], []) for outputs, _ in found)
            nonfinite = dict.fromkeys(name for _, names in found for name in names)
            now, ran = time.perf_counter(), self.engine.executions
            yield Evaluation(worst, True, tuple(nonfinite), (), ran - before, now - started)
            started, before = now, ran

    def loss(self, precision: Precision) -> float:
        """The worst loss over all samples."""
        found = self.evaluate_together(precision, range(self.samples))
        return max((evaluation.loss for evaluation in found), default=-math.inf)

    def _profiles(self, precision: Precision) -> int:
        """How many profiles there are to run: FP32 is the same in all of them."""
        return self.engine.profiles if len(precision) < precision.count else 1

    def _run(
        self, precision: Precision, sample: int, profile: int
    ) -> tuple[Outputs, Sequence[str]]:
        if self.compute is None:
            return self.engine.run(precision, sample, profile)
        found = self.compute(precision, self.engine.sample(sample))
        return {name: torch.as_tensor(value) for name, value in found.items()}, ()
