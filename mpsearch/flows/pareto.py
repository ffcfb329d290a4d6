"""The front of FP32 ops against error, from one search."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import numpy as np

from .. import options
from ..ending import Ending, Stage, Stop
from ..evaluation.evaluator import Evaluator
from ..numerics.choosing import Numerics
from ..options import Conversion, Execution, Limits
from ..program.precision import Precision
from ..results import rows
from ..results.front import Front, Point
from ..search import registry
from ..search.cost import Casts
from ..search.evaluations import Evaluations
from ..search.problem import Problem, units
from ..search.search import Search, Strategy
from ..search.storage import check_storage
from ..source.prepare import Prepared, check_device, prepare
from .isolation import isolated
from .job import measured, samples_of, take_fp32_losses
from .progress import Progress
from .study import fields, study

_TRIALS = 600
#: Share of the trials for the sets along the model's own order; the rest is for searching.
_ALONG_THE_ORDER = 0.2


@isolated
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
    run_strategy = registry.find_strategy(strategy)
    check_storage(execution.storage)
    check_device(execution.device)
    bar = Progress(execution.progress)
    ending = Ending(limits.timeout)
    with ending.listening(), closing(bar):
        bar.stage("converting")
        prepared = prepare(model, data, metric, numerics, conversion, heldout, targets)
        evaluator = prepared.evaluator(
            execution.device, execution.cache_bytes, ending, seed=execution.seed
        )
        ending.start()
        asked = {"points": points, "heldout": heldout, **fields(conversion)}
        search = _search(prepared, evaluator, execution, ending, trials, asked, bar)
        search.judge_all_units()
        ending.stage = Stage.SEARCH
        with suppress(Stop):
            search.judge((), "ends")
            _along_the_order(search, int(trials * _ALONG_THE_ORDER))
            every = search.remaining
            budgets = _budgets(search, points)
            for i, budget in enumerate(budgets):
                search.restrict(limit=budget)
                search.allowed = (
                    len(search.trials) + every * (i + 1) // points - every * i // points
                )
                if not registry.run(run_strategy, search):
                    break
        bar.stage("measuring held-out data")
        ending.stage = Stage.WRITE
        return _front(prepared, search, execution)


def _search(
    prepared: Prepared,
    evaluator: Evaluator,
    execution: Execution,
    ending: Ending,
    trials: int,
    asked: dict[str, Any],
    bar: Progress,
) -> Search:
    """A search without a limit, in which what overflows is FP32."""
    ops = prepared.ops
    losses, range_ = measured(prepared, evaluator, ending)
    refused = frozenset(range_.refused)
    problem = Problem(
        units(ops, [i for i in range(len(ops)) if i not in refused]),
        ops,
        math.inf,
        refused,
        casts=Casts(prepared.lowered),
        required=refused,
        harmless=range_.harmless,
        seed=execution.seed,
    )
    evaluations = Evaluations(evaluator, study(prepared, execution, ending, asked, {}))
    search = Search(
        problem, evaluations, samples_of(prepared, evaluator), trials=trials, watch=bar.trial
    )
    take_fp32_losses(search, losses)
    return search


def _along_the_order(search: Search, trials: int) -> None:
    """Heads of the ranking, from none to all."""
    order = search.ranking.order
    sizes = np.unique(np.geomspace(1, len(order) + 1, max(trials, 2)).astype(int) - 1)
    for size in sizes:
        search.judge(order[:size], "order")


def _budgets(search: Search, points: int) -> list[float]:
    """Losses between those of the fewest and the most FP32 ops, the loosest first."""
    losses = sorted({t.loss for t in search.trials if t.exact and math.isfinite(t.loss)})
    if not losses or losses[0] == losses[-1]:
        return []  # nothing to be bought: all errors are the same
    floor, top = losses[0], losses[-1]
    if floor >= 0:
        least = max(floor * 1.1, top * 1e-6)
        return [float(b) for b in np.geomspace(max(top * 0.9, least), least, points)]
    return [float(b) for b in np.linspace(top, floor, points + 2)[1:-1]]


def _front(prepared: Prepared, search: Search, execution: Execution) -> Front:
    metric, problem = prepared.metric, search.problem
    held = prepared.heldout_evaluator(execution.device, execution.cache_bytes)
    points = []
    for trial in rows.undominated(search):
        precision = problem.precision(trial.fp32)
        points.append(
            Point(
                tuple(prepared.ops[i].name for i in precision),
                metric.loss_of(trial.loss),
                None if held is None else metric.loss_of(held.loss(precision)),
                problem.rank(trial.fp32)[2],
            )
        )
    known = search.evaluations.known(Precision.all_fp32(len(prepared.ops)))
    return Front(
        metric=metric.name,
        candidate_ops=len(prepared.ops),
        error_fp32=metric.loss_of(max(found.loss for found in known.values())),
        evaluations=search.evaluations.precisions,
        points=tuple(points),
    )
