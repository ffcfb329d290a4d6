"""``optimize``: the fewest ops that must stay FP32, as a package that was read back and tested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..ending import Ending
from ..numerics.choosing import Numerics
from ..options import Constraints, Conversion, Execution, Limits
from ..result import Result
from ..results.data import TrialRow
from ..search.search import Strategy
from .isolation import isolated
from .request import Request
from .running import run


@isolated
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
        the path of a file of samples, or :class:`mpsearch.source.data.Data`.
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
        :class:`mpsearch.search.search.Search`.
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
        return run(request, model, data, ending, on_trial=on_trial)
