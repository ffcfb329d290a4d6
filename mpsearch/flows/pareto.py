"""The front of FP32 ops against error, from one search."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import numpy as np

from .. import options
from ..ending import Ending, Stage, Stop
from ..numerics.choosing import Numerics
from ..options import Conversion, Execution, Limits
from ..results.front import Front, Point
from ..search import registry as search
from ..search.cost import Casts
from ..search.problem import Problem, Strategy
from ..search.question import Question, units
from ..search.store import check_storage
from ..source.prepare import Prepared, check_device, prepare
from .job import measured
from .keeping import fields, record
from .progress import Progress
from .surroundings import undisturbed

_TRIALS = 600
#: Share of the trials for the sets along the model's own order; the rest is for searching.
_ALONG_THE_ORDER = 0.2


@undisturbed
def pareto(
    model: Any,
    data: Any,
    metric: str | Callable[..., float] = "rel_l2",
    *,
    targets: Any = None,
    heldout: float = 0.3,
    points: int = 8,
    strategy: str | Strategy = "greedy-optuna",
    numerics: Numerics = "ieee",
    conversion: Conversion = Conversion(),
    limits: Limits = Limits(),
    execution: Execution = Execution(),
) -> Front:
    """Trade FP32 ops for accuracy: what each number of them can buy.

    Ops that overflow in FP16, or soon will, are FP32 in every point. One search runs through
    ``points`` budgets, from the loosest to the tightest; every evaluation made for one serves the
    others. Parameters are those of :func:`mpsearch.optimize`.

    Raises
    ------
    InputError
        If something given cannot be used.
    """
    points = options.count(points, "points", 2, 1000)
    options.group(conversion, Conversion, "conversion")
    options.group(limits, Limits, "limits")
    options.group(execution, Execution, "execution")
    trials = limits.trials or _TRIALS
    heldout = options.number(heldout, "heldout")
    run_strategy = search.find_strategy(strategy)
    check_storage(execution.storage)
    check_device(execution.device)
    bar = Progress(execution.progress)
    ending = Ending(limits.timeout)
    with ending.listening(), closing(bar):
        bar.stage("converting")
        prepared = prepare(model, data, metric, numerics, conversion, heldout, targets)
        ops = prepared.ops
        casts = Casts(prepared.lowered)
        evaluator = prepared.evaluator(execution.device, execution.cache_bytes, ending)
        ending.start()
        floor, range_ = measured(prepared, evaluator, ending)
        free = [i for i in range(len(ops)) if i not in range_.refused]
        question = Question(
            units(ops, free),
            ops,
            math.inf,
            frozenset(range_.refused),
            casts=casts,
            required=frozenset(range_.refused),
            harmless=range_.harmless,
            seed=execution.seed,
        )
        asked = {"points": points, "heldout": heldout, **fields(conversion)}
        problem = Problem(
            question,
            evaluator,
            record(prepared, execution, ending, asked, {}),
            trials=trials,
            ending=ending,
            watch=bar.trial,
            floor=floor,
        )
        problem.admit(problem.everything)
        ending.stage = Stage.SEARCH
        with suppress(Stop):
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
        ending.stage = Stage.WRITE
        return _front(prepared, problem, execution)


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


def _front(prepared: Prepared, problem: Problem, execution: Execution) -> Front:
    metric = prepared.metric
    held = prepared.heldout_evaluator(execution.device, execution.cache_bytes)
    points = []
    for trial in problem.record.undominated(problem.question):
        precision = problem.question.precision(trial.kept)
        points.append(
            Point(
                tuple(prepared.ops[i].name for i in precision),
                metric.loss_of(trial.seen),
                None if held is None else metric.loss_of(held.evaluate(precision).loss),
                problem.question.rank(trial.kept)[2],
            )
        )
    return Front(
        metric=metric.name,
        candidate_ops=len(prepared.ops),
        error_fp32=metric.loss_of(problem.ends()[0]),
        evaluations=problem.evaluator.evaluations,
        points=tuple(points),
    )
