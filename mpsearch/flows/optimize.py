"""The flow: source -> pre-cast program -> search -> package -> read back -> result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any

from .. import options
from ..ending import Ending, Stage
from ..errors import InputError, MpsearchError
from ..evaluation.metrics import Metric, resolve
from ..explain.hazards import check_action, struck
from ..explain.hazards import notes as hazard_notes
from ..files import Room
from ..package import emission
from ..package.weights import Stored
from ..package.weights import check_storage as check_weights
from ..results.result import PACKAGE, Result
from ..search import pins
from ..search import registry as search
from ..search.cost import Casts, check_objective
from ..search.problem import Problem, Strategy
from ..search.proof import prove as prove_least
from ..search.question import Question, check_granularity, units
from ..search.record import Record, Trial, check_storage
from ..source.prepare import Prepared, check_device, prepare
from .holding import holding, tighter
from .outcome import describe, extras, infeasible, new_result, seal, unwritten
from .progress import Progress
from .surroundings import undisturbed
from .writing import store, write

DEFAULT_TRIALS = 300
#: Share of the trials kept back for searching on where the package or the held-out data fails.
_RESERVE = 0.3


@undisturbed
def optimize(
    model: Any,
    inputs: Any,
    budget: float,
    metric: str | Callable[..., float] = "rel_l2",
    *,
    targets: Any = None,
    strategy: str = "greedy-optuna",
    numerics: str = "ieee",
    target: str = "iOS17",
    trials: int | None = None,
    timeout: float | None = None,
    seed: int = 0,
    keep_fp32: Iterable[str] = (),
    keep_fp16: Iterable[str] = (),
    by: str = "op",
    minimise: str = "ops",
    prove: bool = False,
    forbid_overflow: bool = False,
    hazards: str = "pin",
    weights: str | None = None,
    storage: str | None = None,
    heldout: float = 0.25,
    io_dtype: str | None = None,
    states: Iterable[str] = (),
    device: str = "cpu",
    cache_bytes: int | None = None,
    progress: bool | None = None,
    name: str | None = None,
    ending: Ending | None = None,
) -> Result:
    """Find the fewest ops that must stay FP32 for a model to meet an accuracy budget in Core ML.

    Parameters
    ----------
    model
        An ``nn.Module``, ``ScriptModule``, ``ExportedProgram`` or FP32 ``MLModel``, or a path as
        :func:`mpsearch.source.loading.load_model` takes it.
    inputs
        Calibration data: one sample (a tensor, a tuple, a dict), a list of samples, a DataLoader,
        or :class:`mpsearch.source.data.Data`.
    budget
        The largest error allowed (the smallest value, in dB, for ``psnr`` and ``snr``; the
        largest drop for a task metric).
    metric
        See :func:`mpsearch.evaluation.metrics.resolve`.
    targets
        What a task metric compares with: one for each sample, or ``"pairs"`` where every item of
        ``inputs`` is (sample, target). Never guessed.
    strategy
        A name in the entry-point group ``mpsearch.strategies``.
    numerics
        ``ieee``, ``ane``, ``strict``, or several with commas between them: the worst counts.
    target
        ``minimum_deployment_target``: ``iOS15`` to ``iOS18``.
    trials, timeout
        Limits: evaluations (default 300), and seconds for the search, from when the model has been
        converted. When they are over, the best set so far is written; what only the report needs
        is left out.
    seed
        For everything random.
    keep_fp32, keep_fp16
        Pins: ``type:softmax``, ``layer:encoder.3.*``, ``op:name*``.
    by
        ``op`` or ``layer``: what is decided as a whole.
    minimise
        What FP32 is to cost least of: ``ops``, ``casts`` (FP32 ops and casts together), ``bytes``
        of weights, or ``flops``. Of equals, the set with fewer ops is taken, then with fewer casts.
    prove
        Try every cheaper set after the search, where there are at most 2**17 of them: if none
        meets the budget, the result is the smallest, without any assumption.
    forbid_overflow
        Refuse sets that leave an op in FP16 whose result overflows where FP32's is finite, even
        where the error stays within the budget.
    hazards
        What to do about ops that are known to fail at run time in FP16
        (:mod:`mpsearch.explain.hazards`): ``pin`` them to FP32, ``warn``, or ``off``.
    weights
        How weights are stored where the budget allows it: ``fp16`` also for FP32 ops, or ``int8``
        (:mod:`mpsearch.package.weights`); default as their ops are typed.
    storage
        Where Optuna is to keep its study, for instance ``sqlite:///study.db``; default in memory.
    heldout
        The share of the samples that the search never sees.
    io_dtype
        ``fp32`` or ``fp16`` for float inputs and outputs; default: as the model has them.
    states
        Buffers that are states in Core ML (iOS18), such as a KV cache; every sample starts from
        states of zeros.
    device
        A torch device for the executor.
    cache_bytes
        Limit for remembered results; default a quarter of the memory.
    progress
        Whether to show a progress bar; default: where stderr is a terminal.
    name
        What to call the model in the files written; default: its path or class.
    ending
        When to end, from a caller who listens for signals himself, as the command line does until
        the result is saved. Default: ``timeout``, and the first signals while this runs.

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
    started = time.perf_counter()
    if timeout is not None:
        timeout = options.positive(timeout, "timeout", "seconds")
    trials = DEFAULT_TRIALS if trials is None else options.count(trials, "trials")
    seed = options.seed(seed)
    heldout = options.number(heldout, "heldout")
    if cache_bytes is not None:
        cache_bytes = options.count(cache_bytes, "cache_bytes", 0)
    # A metric's name is looked up again with the data; a wrong budget fails before the work.
    limit = _loss_budget(budget, resolve(metric, False))
    run_strategy = search.find_strategy(strategy)
    check_objective(minimise)
    check_action(hazards)
    check_storage(storage)
    check_weights(weights, target)
    check_device(device)
    check_granularity(by)
    listening: AbstractContextManager[None] = nullcontext()
    if ending is None:
        ending = Ending(timeout)
        listening = ending.listening()
    bar = Progress(progress)
    with listening, closing(bar):
        bar.stage("converting")
        prepared = prepare(
            model, inputs, metric, numerics, target, heldout, io_dtype, states, targets
        )
        prepared.source = name or prepared.source
        ops = prepared.ops
        fp32 = pins.resolve(keep_fp32, ops, "--keep-fp32")
        fp16 = pins.resolve(keep_fp16, ops, "--keep-fp16")
        faulty = set(struck(ops)) - fp16 if hazards != "off" else set()
        if fp32 & fp16:
            raise InputError(f"op {ops[min(fp32 & fp16)].name!r} is pinned to FP32 and to FP16")
        chosen = set(fp32)
        if hazards == "pin":
            fp32 = fp32 | faulty
            prepared.pinned_by_hazard = [ops[i].name for i in sorted(faulty - chosen)]
        prepared.notes += hazard_notes(ops, faulty - chosen, hazards == "pin")
        question = Question(
            units(ops, [i for i in range(len(ops)) if i not in fp32 | fp16], by),
            ops,
            limit,
            frozenset(fp32),
            minimise,
            Casts(prepared.lowered),
            forbid_overflow,
            seed,
        )
        problem = Problem(
            question,
            prepared.evaluator(device, cache_bytes, ending),
            Record(None, storage),
            trials=trials,
            ending=ending,
            watch=bar.trial,
        )
        problem.reserve(_RESERVE)
        ending.start()
        bar.stage("measuring all-FP32 and all-FP16")
        if problem.floor() > limit or not problem.admit(problem.everything).met:
            return infeasible(prepared, problem, started)
        ending.stage = Stage.SEARCH
        problem.ends()
        finished = problem.admit_fp16() or search.run(run_strategy, problem)
        proven = prove and prove_least(problem)
        return _until_it_holds(
            prepared, problem, run_strategy, started, bar, finished, proven, prove, weights
        )


def _until_it_holds(
    prepared: Prepared,
    problem: Problem,
    strategy: Strategy,
    started: float,
    bar: Progress,
    finished: bool,
    proven: bool,
    prove: bool,
    storage: str | None = None,
) -> Result:
    """Write the best set, read it back, and search on with more margin until it holds.

    ``finished`` says whether the search came to its own end, ``storage`` how weights are to be
    stored then, where that keeps the budget.

    Passes that coremltools runs after the cast may reorder arithmetic, and the held-out data is
    not known to the search: either can break the budget that the search met. Where the run is to
    end, there is no searching on: a set that was tried and holds is taken, or all FP32.

    Raises
    ------
    VerificationError
        If the package computes an op in another precision than was asked for.
    """
    limit, ending = problem.limit, problem.ending
    scratch = Room()
    path = scratch.path / PACKAGE
    fallback: Trial | None = None
    last: Trial | None = None
    while True:
        best = last or problem.best
        assert best is not None  # all-FP32 meets the budget, or there would be no search
        if fallback is not None and problem.question.rank(fallback.kept) < problem.question.rank(
            best.kept
        ):
            best = fallback
        precision = problem.question.precision(best.kept)
        names = [prepared.ops[i].name for i in precision]
        ending.stage = Stage.WRITE
        bar.stage("writing the package and reading it back")
        problem.engine.release()  # coremltools and the package hold the weights once more each
        try:
            package, measured, held = write(prepared, names, path)
        except MpsearchError:
            raise
        except Exception as error:  # a full disk, in whatever words: what was found is kept
            return unwritten(prepared, problem, started, precision, error)
        worst = max(measured, held)
        if worst <= limit or best.kept == problem.everything:
            break
        del package
        problem.reject(best.kept)
        fallback = holding(prepared, problem, limit)
        if ending.over:
            last, finished = fallback or problem.record.known(problem.everything), False
            continue
        problem.tighten(
            max(problem.ends()[0], tighter(problem.question.limit, best.loss, limit, worst))
        )
        finished &= search.run(strategy, problem)
        proven = prove and prove_least(problem)
    if worst > limit:
        return infeasible(prepared, problem, started, held)
    stored: Stored | None = None
    stored_names: list[str] = []
    if storage is not None and not ending.over:
        bar.stage(f"storing weights as {storage}")
        package, measured, held, stored, stored_names = store(
            prepared, names, path, (package, measured, held), storage, limit
        )
    casts = package.casts
    del package  # it holds the weights once more
    status = "met" if names else "fp16_suffices"
    result = new_result(prepared, problem, started, status if finished else "interrupted")
    if storage is not None and stored is None:
        result.notes.append(f"Weights are stored as typed: no time was left for {storage}.")
    metric = prepared.metric
    result.proven = proven
    result.error = metric.loss_of(measured)
    result.heldout_error = metric.loss_of(held) if prepared.heldout.samples else None
    result.searched_error = metric.loss_of(best.loss)
    result.casts, result.weights = casts, stored
    result.package_bytes = emission.package_bytes(path)
    describe(prepared, problem, result, precision, casts)
    extras(prepared, problem, result, best, precision, bar)
    seal(prepared, problem, result, storage, stored_names)
    result._scratch = scratch
    result.seconds = time.perf_counter() - started
    return result


def _loss_budget(budget: Any, metric: Metric) -> float:
    return metric.loss_of(options.budget(budget, metric.larger_is_better))
