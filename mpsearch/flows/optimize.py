"""The flow: source -> program before the cast -> search -> package -> does it hold? -> result."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from ..ending import Ending, Stage
from ..errors import MpsearchError
from ..files import Room
from ..numerics.profiles import Numerics
from ..options import Constraints, Conversion, Execution, Limits
from ..results.result import PACKAGE, Result
from ..search.problem import Strategy
from ..search.proof import prove
from ..search.record import Trial
from ..search.registry import run
from ..source.prepare import prepare
from .holding import holding, tighter
from .job import Job, Request, pose
from .outcome import Found, infeasible, outcome, unwritten
from .progress import Progress
from .surroundings import undisturbed
from .writing import store, write


@undisturbed
def optimize(
    model: Any,
    data: Any,
    budget: float,
    metric: str | Callable[..., float] = "rel_l2",
    *,
    targets: Any = None,
    heldout: float = 0.25,
    strategy: str | Strategy = "greedy-optuna",
    numerics: Numerics = "ieee",
    conversion: Conversion = Conversion(),
    constraints: Constraints = Constraints(),
    limits: Limits = Limits(),
    execution: Execution = Execution(),
) -> Result:
    """Find the fewest ops that must stay FP32 for a model to meet an accuracy budget in Core ML.

    Parameters
    ----------
    model
        An ``nn.Module``, ``ScriptModule``, ``ExportedProgram`` or FP32 ``MLModel``, or a path as
        :func:`mpsearch.source.loading.load_model` takes it.
    data
        Calibration data: one sample (a tensor, a tuple, a dict), a list of samples, a DataLoader,
        or :class:`mpsearch.source.data.Data`.
    budget
        The largest error allowed (the smallest value, in dB, for ``psnr`` and ``snr``; the
        largest drop for a task metric).
    metric
        See :func:`mpsearch.evaluation.metrics.resolve`.
    targets
        What a task metric compares with: one for each sample, or ``"pairs"`` where every item of
        ``data`` is (sample, target). Never guessed.
    heldout
        The share of the samples that the search never sees.
    strategy
        A name in the entry-point group ``mpsearch.strategies``, or a function of a
        :class:`mpsearch.search.problem.Problem`.
    numerics
        ``ieee``, ``ane``, ``strict``, a :class:`mpsearch.numerics.profiles.Profile`, or several,
        in a list or with commas between names: the worst counts.
    conversion
        What is converted to: target, dtypes of inputs and outputs, states, storage of weights.
    constraints
        What the choice is bound by: pins, what is decided and minimized, overflows, hazards.
    limits
        How long to search: trials, seconds, whether to prove.
    execution
        Where and how: device, memory, seed, the study's storage, progress.

    Returns
    -------
    Result

    Raises
    ------
    InputError
        If something given cannot be used.

    Examples
    --------
    >>> result = mpsearch.optimize(model, samples, budget=1e-3)  # doctest: +SKIP
    >>> result.save("model-mixed")  # doctest: +SKIP
    """
    request = Request(
        budget,
        metric,
        targets,
        heldout,
        strategy,
        numerics,
        conversion,
        constraints,
        limits,
        execution,
    )
    ending = Ending(request.limits.timeout)
    with ending.listening():
        return answer(request, model, data, ending)


def answer(
    request: Request, model: Any, data: Any, ending: Ending, name: str | None = None
) -> Result:
    """Answer a request: prepare, search, write, read back, does it hold?, search on.

    Parameters
    ----------
    ending
        When to end; the caller listens for signals.
    name
        What to call the model in the files written; default: its path or class.

    Raises
    ------
    InputError
        If something given cannot be used.
    VerificationError
        If the package computes an op in another precision than was asked for.
    """
    started = time.perf_counter()
    with closing(Progress(request.execution.progress)) as bar:
        bar.stage("converting")
        prepared = prepare(
            model,
            data,
            request.metric,
            request.numerics,
            request.conversion,
            request.heldout,
            request.targets,
        )
        job = pose(request, prepared, ending, name, started, bar.trial)
        problem = job.problem
        ending.start()
        bar.stage("measuring all-FP32 and all-FP16")
        if problem.floor() > problem.limit or not problem.admit(problem.everything).met:
            return infeasible(job)
        ending.stage = Stage.SEARCH
        problem.ends()
        return _until_it_holds(job, bar)


def _until_it_holds(job: Job, bar: Progress) -> Result:
    """Search, write the best set, read it back, and search on with more margin until it holds.

    Passes that coremltools runs after the cast may reorder arithmetic, and the held-out data is
    not known to the search: either can break the budget that the search met. Where the run is to
    end, there is no searching on: a set that was tried and holds is taken, or all FP32.
    """
    problem, limit, ending = job.problem, job.problem.limit, job.problem.ending
    strategy = job.request.search
    room = Room()
    path = room.path / PACKAGE
    finished, proven = True, False
    last: Trial | None = None
    fallback: Trial | None = None
    while True:
        if last is None:
            finished &= problem.admit_fp16() or run(strategy, problem)
            proven = job.request.limits.prove and prove(problem)
            finished &= not ending.over
        best = last or problem.best
        assert best is not None  # all-FP32 meets the budget, or there would be no search
        if fallback is not None and _cheaper(job, fallback, best):
            best = fallback
        precision = problem.question.precision(best.kept)
        ending.stage = Stage.WRITE
        bar.stage("writing the package and reading it back")
        problem.engine.release()  # coremltools and the package hold the weights once more each
        try:
            written = write(job.prepared, precision, path)
        except MpsearchError:
            raise
        except Exception as error:  # a full disk, in whatever words: what was found is kept
            return unwritten(job, best, error)
        if written.worst <= limit or best.kept == problem.everything:
            break
        problem.reject(best.kept)
        fallback = holding(job.prepared, problem, limit)
        if ending.over:
            last, finished = fallback or problem.record.known(problem.everything), False
            continue
        margin = tighter(problem.question.limit, best.loss, limit, written.worst)
        problem.tighten(max(problem.ends()[0], margin))
    if written.worst > limit:
        return infeasible(job, written.heldout)
    dtype, notes = job.request.conversion.weight_dtype, job.notes
    if dtype is not None and not ending.over:
        bar.stage(f"storing weights as {dtype}")
        written = store(job.prepared, precision, path, written, dtype, limit)
    elif dtype is not None:
        notes = (*notes, f"Weights are stored as typed: no time was left for {dtype}.")
    return outcome(job, Found(best, precision, written, room, finished, proven, notes), bar)


def _cheaper(job: Job, one: Trial, other: Trial) -> bool:
    rank = job.problem.question.rank
    return rank(one.kept) < rank(other.kept)
