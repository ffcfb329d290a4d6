"""The front of FP32 ops against error, from one search."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .. import options
from ..results.front import Front, Point
from ..search import registry as search
from ..search.cost import Casts
from ..search.problem import Problem
from ..search.question import Question
from ..source.prepare import Prepared, check_device, prepare
from .progress import Progress
from .surroundings import undisturbed

#: Share of the trials for the sets along the model's own order; the rest is for searching.
_ALONG_THE_ORDER = 0.2


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
        casts = Casts(prepared.lowered)
        question = Question.of_ops(ops, math.inf, casts, seed)
        evaluator = prepared.evaluator(device, cache_bytes)
        problem = Problem(question, evaluator, trials=trials, watch=bar.trial)
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
    problem.ask([order[:n] for n in sizes], "order", exact=True)


def _budgets(problem: Problem, points: int) -> list[float]:
    """Losses between those of the fewest and the most FP32 ops, the loosest first."""
    losses = sorted({t.loss for t in problem.record.trials if t.exact and math.isfinite(t.loss)})
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
    for trial in problem.record.undominated(problem.question):
        precision = problem.question.precision(trial.kept)
        points.append(
            Point(
                [op.name for op in prepared.ops if op.index in precision],
                metric.loss_of(trial.loss),
                None if held is None else metric.loss_of(held.evaluate(precision).loss),
                problem.question.rank(trial.kept)[2],
            )
        )
    floor = metric.loss_of(problem.ends()[0])
    return Front(points, metric.name, len(prepared.ops), floor, problem.evaluator.evaluations)
