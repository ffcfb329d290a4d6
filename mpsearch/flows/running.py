"""The run of ``optimize``: convert, search, write, validate; and the same for a changed program."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

from ..ending import Ending, Stage, Stop
from ..result import Result
from ..results import rows
from ..results.data import TrialRow
from ..scaling.exponents import BEYOND
from ..search.search import Search, Trial
from ..source.prepare import prepare
from ..usercode import guarded
from .converted import device_of
from .isolation import threads
from .job import Context, Job, build_job, pool_size
from .messages import left_out, without_effect
from .outcome import infeasible
from .progress import Progress
from .request import Request
from .rescaling import changed, with_fewer_scales
from .searching import search_until_valid
from .workers import threads_of, workers


def run(
    request: Request,
    model: Any,
    data: Any,
    ending: Ending,
    name: str | None = None,
    on_trial: Callable[[TrialRow], object] | None = None,
    started: float | None = None,
) -> Result:
    """Do what a request asks.

    Parameters
    ----------
    ending
        When to end; the caller listens for signals.
    name
        What to call the model in the files written; default: its path or class.
    started
        When the command began, in seconds of ``time.perf_counter``; default: now.

    Raises
    ------
    InputError
        If something given cannot be used.
    VerificationError
        If the package computes an op in another precision than was asked for.
    """
    started = time.perf_counter() if started is None else started
    with (
        closing(Progress(request.execution.progress)) as bar,
        threads(threads_of(request.execution)),
        workers(request.execution) as processes,
        device_of(request.execution) as device,
    ):
        bar.stage("converting")
        prepared = prepare(
            model,
            data,
            request.metric,
            request.numerics,
            request.conversion,
            request.heldout,
            request.targets,
            pool_size if request.perturbs else None,
            request.execution.seed,
        )
        ending.start()
        bar.stage("measuring all-FP32 and all-FP16")
        watch = _watching(bar, on_trial)
        context = Context(request, ending, name, started, watch, processes, device)
        job = build_job(context, prepared)
        search = job.search
        if resumed := search.evaluations.study.resumed:
            bar.stage(f"going on from {resumed} evaluations of a run before")
        if job.fp32_loss > search.limit or not search.judge_all_units().met:
            return infeasible(job)
        ending.stage = Stage.SEARCH
        return _best(job, bar)


def _watching(
    bar: Progress, on_trial: Callable[[TrialRow], object] | None
) -> Callable[[Trial, Search], None]:
    """What is done with every trial: it is shown, and the caller is told."""

    def watch(trial: Trial, search: Search) -> None:
        bar.trial(trial, search)
        if on_trial is not None and not search.ending.over:
            try:
                with guarded("on_trial"):
                    on_trial(rows.trial_row(trial, search.evaluations.evaluator.metric))
            except Stop:
                search.ending.give_up("on_trial ended the search.")

    return watch


def _best(job: Job, bar: Progress) -> Result:
    """The result of a changed program where one is asked for and keeps fewer ops in FP32."""
    other = changed(job, bar)
    said = without_effect(job, other)
    if other is None:
        return search_until_valid(replace(job, notes=(*job.notes, *said)), bar)
    other = replace(other, notes=(*other.notes, *said))
    found = search_until_valid(other, bar)
    if found.met and (not found.kept or job.context.ending.over):
        return found
    if found.met:
        fp32 = {op.name for op in found.kept}
        fewer = with_fewer_scales(other, fp32, bar)
        if fewer is not None and not job.context.ending.over:
            fewer = replace(fewer, notes=(*fewer.notes, *said))
            found = min(search_until_valid(fewer, bar, fp32), found, key=_price)
    plain = replace(job, notes=(*job.notes, *said, *left_out(other, found)))
    return min(search_until_valid(plain, bar), found, key=_price)


def _price(result: Result) -> tuple[bool, float, int]:
    """How dear a result is: whether it breaks the budget, what is minimized, and how many ops.

    Ops that were inserted count beside those in FP32 as when exponents are chosen.
    """
    if not result.met:
        return True, 0.0, 0
    inserted = result.candidate_ops / BEYOND if result.minimized in ("ops", "casts") else 0.0
    price = result.costs["package"].price(result.minimized)
    return False, price + inserted, result.candidate_ops
