"""The flow: source -> program before the cast -> search -> package -> does it hold? -> result."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import closing
from pathlib import Path
from typing import Any

from ..ending import Ending, Stage, Stop
from ..errors import MpsearchError
from ..numerics.choosing import Numerics
from ..options import Constraints, Conversion, Execution, Limits
from ..program.precision import Precision
from ..results import account
from ..results.result import PACKAGE, Result, TrialRow
from ..scaling.exponents import BEYOND
from ..search.problem import Problem, Strategy
from ..search.proof import prove
from ..search.record import Trial
from ..source.prepare import prepare
from ..temporary import TemporaryFolder
from ..usercode import guarded
from .certifying import Certifier
from .converted import backend
from .crew import crew, threads_of
from .job import Job, Request, pool_size, pose
from .outcome import Found, infeasible, outcome, unwritten
from .progress import Progress
from .rescaling import changed, lighter
from .searching import again, mended, search
from .surroundings import threads, undisturbed
from .writing import Written, check_integers, store, write


@undisturbed
def optimize(
    model: Any,
    data: Any,
    budget: float,
    metric: str | Callable[..., float] = "rel_l2",
    *,
    targets: Any = None,
    heldout: float = 0.3,
    strategy: str | Strategy = "greedy-optuna",
    numerics: Numerics = "ieee",
    conversion: Conversion = Conversion(),
    constraints: Constraints = Constraints(),
    limits: Limits = Limits(),
    execution: Execution = Execution(),
    on_trial: Callable[[TrialRow], object] | None = None,
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
    on_trial
        Called with every trial of the search, as it is made; :class:`mpsearch.ending.Stop`, raised
        in it, ends the search with the best so far.

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
        return answer(request, model, data, ending, on_trial=on_trial)


def answer(
    request: Request,
    model: Any,
    data: Any,
    ending: Ending,
    name: str | None = None,
    on_trial: Callable[[TrialRow], object] | None = None,
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
    with (
        closing(Progress(request.execution.progress)) as bar,
        threads(threads_of(request.execution)),
        crew(request.execution) as hire,
        backend(request.execution) as device,
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
            None if request.chance is None else pool_size,
            request.execution.seed,
        )
        ending.start()
        bar.stage("measuring all-FP32 and all-FP16")
        watch = _watching(bar, on_trial)
        job = pose(request, prepared, ending, name, started, watch, hire=hire, device=device)
        problem = job.problem
        if (store := problem.record.store) is not None and store.known:
            bar.stage(f"going on from {store.known} evaluations of a run before")
        if problem.floor() > problem.limit or not problem.admit(problem.everything).met:
            return infeasible(job)
        ending.stage = Stage.SEARCH
        problem.ends()
        return _best(job, bar)


def _watching(
    bar: Progress, on_trial: Callable[[TrialRow], object] | None
) -> Callable[[Trial, Problem], None]:
    """What is done with every trial: it is shown, and the caller is told."""

    def watch(trial: Trial, problem: Problem) -> None:
        bar.trial(trial, problem)
        if on_trial is not None and not problem.ending.over:
            try:
                with guarded("on_trial"):
                    on_trial(account.row(trial, problem.evaluator.metric))
            except Stop:
                problem.ending.give_up("on_trial ended the search.")

    return watch


def _best(job: Job, bar: Progress) -> Result:
    """The result of a changed program where one is asked for and keeps fewer ops in FP32."""
    other = changed(job, bar)
    if other is None:
        return _until_it_holds(job, bar)
    found = _until_it_holds(other, bar)
    if found.met and (not found.kept or job.problem.ending.over):
        return found
    if found.met:
        kept = {op.name for op in found.kept}
        less = lighter(other, kept, bar)
        if less is not None and not job.problem.ending.over:
            found = min(_until_it_holds(less, bar, kept), found, key=_price)
    return min(_until_it_holds(job, bar), found, key=_price)


def _price(result: Result) -> tuple[bool, float, int]:
    """How dear a result is: whether it breaks the budget, what is minimized, and how many ops.

    Ops that were inserted count beside those in FP32 as when exponents are chosen.
    """
    if not result.met:
        return True, 0.0, 0
    cost = result.costs["package"]
    inserted = result.candidate_ops / BEYOND
    price = {
        "ops": cost.fp32_ops + inserted,
        "casts": cost.fp32_ops + cost.casts + inserted,
        "bytes": float(cost.weight_bytes),
        "flops": cost.fp32_flops,
    }
    return False, price[result.minimized], result.candidate_ops


def _until_it_holds(job: Job, bar: Progress, start: Collection[str] = ()) -> Result:
    """Search, write the best set, read it back, test it on held-out data; and on until it holds.

    Passes that coremltools runs after the cast may reorder arithmetic, so that the package breaks
    the budget that the search met; and the search has not seen the held-out data. Where the run is
    to end there is no searching on: a safer set is taken.
    """
    problem, limit, ending = job.problem, job.problem.limit, job.problem.ending
    certifier = Certifier(job)
    room = TemporaryFolder()
    notes = list(job.notes)
    integers_fit = False  # whether that was looked at
    dtype = job.request.conversion.weight_dtype
    finished = search(job, start)
    proven = finished and job.request.limits.prove and prove(problem)
    finished &= not ending.over
    best = problem.best or problem.admit(problem.everything)
    while True:
        ending.stage = Stage.WRITE
        bar.stage("writing the package and reading it back")
        precision = problem.question.precision(best.kept)
        try:
            written = _written(job, precision, room.path / PACKAGE, dtype)
        except MpsearchError:
            raise
        except Exception as error:  # a full disk, in whatever words: what was found is kept
            return unwritten(job, best, error)
        last = best.kept == problem.everything
        if written.loss > limit and not integers_fit:
            searched = problem.evaluator.searched
            check_integers(
                job.prepared, precision, room.path / "without.mlpackage", searched, limit
            )
            integers_fit = True
        if written.loss > limit and last:
            return infeasible(job)
        if written.loss > limit:
            finished &= again(job, best, written.loss)
            best, proven = problem.best or problem.admit(problem.everything), False
            continue
        bar.stage("testing on held-out data")
        tested = certifier.test(written.package, best.kept, hasty=ending.over or last)
        if tested.holds:
            break
        if last and written.stored is not None:  # those weights may be what breaks the budget
            notes.append(f"Weights are stored as typed: as {dtype} they break held-out samples.")
            dtype = None
            continue
        if last:
            return infeasible(job, tested.worst)
        proven = False
        if tested.offenders:
            notes += certifier.use_up(tested.offenders, best.kept)
            finished &= mended(job, best)
            best = problem.best or problem.admit(problem.everything)
        else:
            best = problem.admit(problem.everything if tested.safer is None else tested.safer)
    if dtype is not None and written.stored is None:
        notes.append(f"Weights are stored as typed: no time was left for {dtype}.")
    found = Found(best, precision, written, room, finished, proven, tuple(notes), tested)
    return outcome(job, found, bar)


def _written(job: Job, precision: Precision, path: Path, dtype: str | None) -> Written:
    """The package, with weights stored as ``dtype`` where time is left for that."""
    problem = job.problem
    problem.close()
    problem.engine.release()  # coremltools and the package hold the weights once more each
    searched = problem.evaluator.searched
    written = write(job.prepared, precision, path, searched, device=job.device)
    if dtype is None or problem.ending.over or written.loss > problem.limit:
        return written
    return store(job.prepared, precision, path, written, searched, dtype, problem.limit, job.device)
