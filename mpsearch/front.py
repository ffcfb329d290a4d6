"""The front of FP32 ops against error, from one search."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import options, search
from .cost import Casts
from .prepare import Prepared, check_device, prepare
from .problem import Problem, Trial
from .progress import Progress
from .result import number
from .surroundings import undisturbed

#: Share of the trials for the sets along the model's own order; the rest is for searching.
_ALONG_THE_ORDER = 0.2


@dataclass(frozen=True, slots=True)
class Point:
    """One set on the front: no other set that was tried has both fewer FP32 ops and less error.

    Attributes
    ----------
    fp32_ops
        The ops kept in FP32, in execution order.
    error, heldout_error
        On the calibration data, and on the held-out data (None without any).
    casts
        Casts between FP16 and FP32 that the set needs.
    """

    fp32_ops: list[str]
    error: float
    heldout_error: float | None
    casts: int


@dataclass(frozen=True, slots=True)
class Front:
    """The front, from the fewest FP32 ops to the smallest error.

    Attributes
    ----------
    error_fp32
        The floor: the error of all-FP32.
    """

    points: list[Point]
    metric: str
    candidate_ops: int
    error_fp32: float
    evaluations: int

    def as_dict(self) -> dict[str, Any]:
        """What ``mpsearch pareto --json`` prints. Infinite errors are null."""
        return {
            "metric": self.metric,
            "candidate_ops": self.candidate_ops,
            "error_fp32": number(self.error_fp32),
            "evaluations": self.evaluations,
            "points": [
                {
                    "fp32_ops": point.fp32_ops,
                    "error": number(point.error),
                    "heldout_error": number(point.heldout_error),
                    "casts": point.casts,
                }
                for point in self.points
            ],
        }


@undisturbed
def pareto(
    model: Any,
    inputs: Any,
    metric: str | Callable[..., float] = "rel_l2",
    *,
    targets: Any = None,
    points: int = 8,
    strategy: str = "greedy-optuna",
    numerics: str = "ieee",
    target: str = "iOS17",
    trials: int = 600,
    seed: int = 0,
    heldout: float = 0.25,
    io_dtype: str | None = None,
    states: Iterable[str] = (),
    device: str = "cpu",
    cache_bytes: int | None = None,
    progress: bool | None = None,
) -> Front:
    """Trade FP32 ops for accuracy: what each number of them can buy.

    One search runs through ``points`` budgets, from the loosest to the tightest; every evaluation
    made for one serves the others. Parameters are those of :func:`mpsearch.optimize`.

    Raises
    ------
    InputError
        If something given cannot be used.
    """
    points = options.count(points, "points", 2, 1000)
    trials = options.count(trials, "trials")
    seed = options.seed(seed)
    heldout = options.number(heldout, "heldout")
    run_strategy = search.find_strategy(strategy)
    check_device(device)
    bar = Progress(progress)
    try:
        bar.stage("converting")
        prepared = prepare(
            model, inputs, metric, numerics, target, heldout, io_dtype, states, targets
        )
        ops = prepared.ops
        problem = Problem(
            search.units(ops, range(len(ops)), "op"),
            ops,
            math.inf,
            prepared.evaluator(device, cache_bytes),
            seed=seed,
            trials=trials,
            casts=Casts(prepared.lowered),
            watch=bar.trial,
        )
        problem.admit(problem.everything)
        problem.admit(())
        _along_the_order(problem, int(trials * _ALONG_THE_ORDER))
        every = problem.remaining
        budgets = _budgets(problem, points)
        for i, budget in enumerate(budgets):
            problem.tighten(budget)
            problem.extend(every * (i + 1) // points - every * i // points)
            if not search.run(run_strategy, problem):
                break
        bar.stage("measuring held-out data")
        return _front(prepared, problem, device, cache_bytes)
    finally:
        bar.close()


def _along_the_order(problem: Problem, trials: int) -> None:
    """Heads of the model's order, from none to all."""
    order = problem.keep_order()
    sizes = np.unique(np.geomspace(1, len(order) + 1, max(trials, 2)).astype(int) - 1)
    problem.try_many([order[:n] for n in sizes], "order", exact=True)


def _budgets(problem: Problem, points: int) -> list[float]:
    """Losses between those of the fewest and the most FP32 ops, the loosest first."""
    losses = sorted({t.loss for t in problem.history if t.exact and math.isfinite(t.loss)})
    if not losses or losses[0] == losses[-1]:
        return []  # nothing to be bought: all errors are the same
    floor, top = losses[0], losses[-1]
    if floor >= 0:
        least = max(floor * 1.1, top * 1e-6)
        return [float(b) for b in np.geomspace(max(top * 0.9, least), least, points)]
    return [float(b) for b in np.linspace(top, floor, points + 2)[1:-1]]


def _front(prepared: Prepared, problem: Problem, device: str, cache_bytes: int | None) -> Front:
    metric = prepared.metric
    held = prepared.heldout_evaluator(device, cache_bytes)
    points = []
    for trial in undominated(problem):
        vector = problem.vector(trial.kept)
        points.append(
            Point(
                [op.name for op in prepared.ops if vector[op.index]],
                metric.loss_of(trial.loss),
                None if held is None else metric.loss_of(held.evaluate(vector).loss),
                problem.rank(trial.kept)[2],
            )
        )
    counters = problem.evaluator.counters
    floor = metric.loss_of(problem.ends()[0])
    return Front(points, metric.name, len(prepared.ops), floor, counters.evaluations)


def undominated(problem: Problem) -> Sequence[Trial]:
    """Trials that no other beats in both ops and loss, the fewest ops first."""
    exact = [t for t in problem.history if t.exact]
    best = math.inf
    out: list[Trial] = []
    for trial in sorted(exact, key=lambda t: (problem.rank(t.kept)[1], t.loss, sorted(t.kept))):
        if trial.loss < best or not out:
            out.append(trial)
            best = trial.loss
    return out
