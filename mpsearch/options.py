"""Options in groups that all flows share: frozen, checked when they are made, plain in configs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any, TypeVar

import msgspec

from .errors import InputError

G = TypeVar("G")


def number(value: Any, name: str) -> float:
    """A finite number.

    Raises
    ------
    InputError
        If it is none; a text, a path, a truth value and None are none.
    """
    try:
        if isinstance(value, (str, bytes, bool)):
            raise TypeError
        found = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        kind = type(value).__name__
        raise InputError(f"{name} is {value!r}, a {kind}; expected a number") from error
    if not math.isfinite(found):
        raise InputError(f"{name} is {found}, expected a finite number")
    return found


def positive(value: Any, name: str, unit: str = "a number") -> float:
    """A finite number above 0.

    Raises
    ------
    InputError
        If it is none.
    """
    found = number(value, name)
    if found <= 0:
        raise InputError(f"{name} is {found:g}, expected {unit} above 0")
    return found


def share(value: Any, name: str) -> float:
    """A number above 0 and below 1.

    Raises
    ------
    InputError
        If it is none.
    """
    found = number(value, name)
    if not 0 < found < 1:
        meant = f"; {found:g}% is {found / 100:g}" if 1 < found < 100 else ""
        raise InputError(f"{name} is {found:g}, expected a share above 0 and below 1{meant}")
    return found


def count(value: Any, name: str, least: int = 1, most: int = 1 << 40) -> int:
    """A whole number from ``least`` to ``most``.

    Raises
    ------
    InputError
        If it is none.
    """
    found = number(value, name)
    if found != int(found) or not least <= found <= most:
        limits = f"{least} or more" if most >= 1 << 40 else f"from {least} to {most}"
        raise InputError(f"{name} is {value}, expected a whole number, {limits}")
    return int(found)


def seed(value: Any) -> int:
    """A seed that torch, numpy and Optuna all take.

    Raises
    ------
    InputError
        If it is not a whole number from 0 to 2**32 - 1.
    """
    return count(value, "seed", 0, 2**32 - 1)


def pin(pattern: str, option: str) -> tuple[str, str]:
    """Of a pin its kind (``type``, ``layer`` or ``op``) and the pattern of names.

    Raises
    ------
    InputError
        If it has another form.
    """
    kind, _, glob = pattern.partition(":")
    if kind not in ("type", "layer", "op") or not glob:
        raise InputError(
            f"{option} {pattern!r}: expected 'type:softmax', 'layer:encoder.3.*' or 'op:name*'"
        )
    return kind, glob


def unknown_metric(name: str) -> str:
    """What is said of a metric that has no such name."""
    return (
        f"metric {name!r} is not known; choose from {', '.join(METRICS)}, or give "
        "package.module:callable"
    )


def unknown_strategy(name: str, installed: Sequence[str]) -> str:
    """What is said of a strategy that is not installed."""
    return (
        f"strategy {name!r} is not known; installed are {', '.join(installed) or 'none'}; a "
        "package that has it is to be installed (again)"
    )


def budget(value: Any, larger_is_better: bool) -> float:
    """A budget: above 0, but for measures in dB, which may be negative.

    Raises
    ------
    InputError
        If it is not finite, or 0 or less where errors are positive.
    """
    return number(value, "budget") if larger_is_better else positive(value, "budget")


def choice(value: Any, name: str, known: Sequence[str]) -> str:
    """One of a few words.

    Raises
    ------
    InputError
        If it is none of them.
    """
    if value not in known:
        raise InputError(f"{name} {value!r} is not known; choose {', '.join(known)}")
    return str(value)


def texts(value: Any, name: str) -> tuple[str, ...]:
    """Several texts; one alone is not taken for its letters.

    Raises
    ------
    InputError
        If it is something else.
    """
    try:
        found = tuple(value)
    except TypeError:
        found = (None,)
    if isinstance(value, (str, bytes)) or not all(isinstance(v, str) for v in found):
        raise InputError(f"{name} is {value!r}, expected a list of texts")
    return found


class _Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options that belong together: frozen, checked when they are made, plain data in configs."""

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            msgspec.structs.force_setattr(self, name, value)


#: The entry-point group in which strategies are registered.
STRATEGIES = "mpsearch.strategies"


def strategy_names() -> list[str]:
    """The names of the strategies that are installed."""
    return sorted(entry.name for entry in entry_points(group=STRATEGIES))


#: Numerics profiles (:mod:`mpsearch.numerics.profiles`).
PROFILES = ("ieee", "ane", "strict", "wide")


def profile_names(text: str) -> list[str]:
    """The profiles that a text names, with commas between them; files end in ``.json``.

    Raises
    ------
    InputError
        If a name is none of :data:`PROFILES`, and no file.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in PROFILES and not name.endswith(".json"):
            raise InputError(
                f"numerics {name!r} is not known; choose from {', '.join(PROFILES)}, a .json that "
                "mpsearch probe wrote, or several with commas between them"
            )
    return names


#: What may compute where Core ML does, as ``coremltools.ComputeUnit`` spells it.
COMPUTE_UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")
#: What computes the outputs of a set.
BACKENDS = ("executor", "coreml")
#: Error measures (:mod:`mpsearch.evaluation.metrics`).
METRICS = ("rel_l2", "max_abs", "mean_abs", "cosine", "psnr", "snr", "kl", "top1")
#: Those in dB, of which more is better.
IN_DB = ("psnr", "snr")
#: Deployment targets, the oldest first.
TARGETS = ("iOS15", "iOS16", "iOS17", "iOS18", "iOS26")
#: Dtypes of float inputs and outputs.
IO_DTYPES = ("fp16", "fp32")
#: What a batch counts for.
BATCHES = ("apart", "whole")
#: How weights can be stored other than as their ops are typed.
WEIGHT_DTYPES = ("fp16", "int8")
#: Whether tensors are scaled by powers of two: not at all, where constants take it up, or also by
#: multiplications that are inserted.
RESCALED = ("off", "fold", "insert")
#: What is decided as a whole.
GRANULARITIES = ("op", "layer")
#: What can be minimized. ``casts`` counts FP32 ops as well: with every op in FP32 there are none.
MINIMIZED = ("ops", "casts", "bytes", "flops")
#: On which inputs a set is to hold.
OBJECTIVES = ("unseen", "calibration")
#: What to do about ops that are known to fail at run time in FP16.
HAZARD_ACTIONS = ("pin", "warn", "off")


class Conversion(_Group, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is converted to.

    Attributes
    ----------
    target
        ``minimum_deployment_target``: ``iOS15`` to ``iOS18``.
    io_dtype
        ``fp32`` or ``fp16`` for float inputs and outputs; None: as the model has them.
    batches
        ``apart``: a batch is so many samples, and the package takes one at a time, where the model
        treats rows independently and takes one alone. ``whole``: a batch is one sample.
    states
        Buffers that are states in Core ML (iOS18), such as a KV cache; every sample starts from
        states of zeros.
    weight_dtype
        How weights are stored where the budget allows it: ``fp16`` also for FP32 ops, or ``int8``
        (:mod:`mpsearch.package.weights`); None: as their ops are typed.
    rescale
        Scale tensors that FP16 cannot hold by powers of two, where that leaves fewer ops in FP32:
        ``fold`` where it costs no op, since constants take it up or ops do not depend on it;
        ``insert`` also with multiplications between ops; ``off``
        (:mod:`mpsearch.scaling.exponents`).
    rewrite
        Spell softplus, logsumexp, log of softmax, exp, log, masks and biases of attention's keys
        otherwise where FP16 breaks them (:mod:`mpsearch.scaling.stable`).

    Raises
    ------
    InputError
        If something given cannot be used.
    """

    target: str = "iOS17"
    io_dtype: str | None = None
    batches: str = "apart"
    states: tuple[str, ...] = ()
    weight_dtype: str | None = None
    rescale: str = "off"
    rewrite: bool = False

    def __post_init__(self) -> None:
        choice(self.target, "target", TARGETS)
        choice(self.batches, "batches", BATCHES)
        choice(self.rescale, "rescale", RESCALED)
        if self.io_dtype is not None:
            choice(self.io_dtype, "io_dtype", IO_DTYPES)
        if self.weight_dtype is not None:
            choice(self.weight_dtype, "weight_dtype", WEIGHT_DTYPES)
            if self.target == "iOS15":
                raise InputError(
                    f"weight_dtype {self.weight_dtype!r} needs constexpr ops, which iOS15 has not; "
                    "choose target iOS16 or later"
                )
        self._set(states=texts(self.states, "states"))


class Constraints(_Group, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the choice of FP32 ops is bound by.

    Attributes
    ----------
    keep_fp32, keep_fp16
        Pins: ``type:softmax``, ``layer:encoder.3.*``, ``op:name*``.
    by
        ``op`` or ``layer``: what is decided as a whole.
    minimize
        What FP32 is to cost least of: ``ops``, ``casts`` (FP32 ops and casts together), ``bytes``
        of weights, or ``flops``. Of equals, the set with fewer ops is taken, then with fewer casts.
    objective
        ``unseen``: the set is to hold on inputs that nobody has seen. ``calibration``: on the
        samples alone, where these are all the inputs that there are.
    coverage, confidence
        The share of inputs on which the budget is to hold, and how sure that is to be: both above
        0 and below 1. What held-out samples can promise of it is in the result.
    tolerate_overflow
        Leave ops in FP16 that overflow there where the error stays within the budget all the same.
        Otherwise they are kept in FP32, and so are those likely to overflow on the next input,
        unless the program absorbs the infinity for every input (:mod:`mpsearch.program.infinity`).
    hazards
        What to do about ops that are known to fail at run time in FP16
        (:mod:`mpsearch.explain.hazards`): ``pin`` them to FP32, ``warn``, or ``off``.

    Raises
    ------
    InputError
        If something given cannot be used.
    """

    keep_fp32: tuple[str, ...] = ()
    keep_fp16: tuple[str, ...] = ()
    by: str = "op"
    minimize: str = "ops"
    objective: str = "unseen"
    coverage: float = 0.95
    confidence: float = 0.95
    tolerate_overflow: bool = False
    hazards: str = "pin"

    def __post_init__(self) -> None:
        choice(self.by, "by", GRANULARITIES)
        choice(self.minimize, "minimize", MINIMIZED)
        choice(self.objective, "objective", OBJECTIVES)
        for name in ("coverage", "confidence"):
            self._set(**{name: share(getattr(self, name), name)})
        choice(self.hazards, "hazards", HAZARD_ACTIONS)
        fp32, fp16 = texts(self.keep_fp32, "keep_fp32"), texts(self.keep_fp16, "keep_fp16")
        self._set(keep_fp32=fp32, keep_fp16=fp16)


class Limits(_Group, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a search may go on.

    Attributes
    ----------
    trials
        Evaluations; None: 300, and 600 for a front. To mend a set that breaks the budget on a
        sample that was not searched on takes some more.
    timeout
        Seconds for the search, from when the model has been converted. When they are over, the
        best set so far is written; what only the report needs is left out.
    prove
        Try every cheaper set after the search, where there are at most 2**17 of them: if none
        meets the budget, the result is the smallest, without any assumption.

    Raises
    ------
    InputError
        If something given cannot be used.
    """

    trials: int | None = None
    timeout: float | None = None
    prove: bool = False

    def __post_init__(self) -> None:
        if self.trials is not None:
            self._set(trials=count(self.trials, "trials"))
        if self.timeout is not None:
            self._set(timeout=positive(self.timeout, "timeout", "seconds"))


class Execution(_Group, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where and how the work is done.

    Attributes
    ----------
    device
        A torch device for the executor.
    cache_bytes
        Limit for remembered results, of all processes together; None: a quarter of the memory,
        2 GiB at most for each process.
    seed
        For everything random.
    storage
        Where to keep every evaluation as it is made, as a study of Optuna's:
        ``sqlite:///study.db``, ``postgresql://...``, ``journal:study.log``; None: in memory.
    resume
        Go on with the study in ``storage`` where it is of the same model, data and options;
        limits may be others. Without one the search begins.
    jobs
        How many processes evaluate in :func:`mpsearch.optimize`, on the CPU; answers do not depend
        on it. With more than one, each does with one thread.
    cluster
        The Dask cluster whose processes evaluate as well, in :func:`mpsearch.optimize`:
        ``tcp://host:8786``, the address of its scheduler, or ``local:4`` for so many processes
        here. Results do not depend on it.
    backend, compute_units
        What computes the outputs of a set in :func:`mpsearch.optimize`: mpsearch's ``executor``, or
        ``coreml`` on a Mac, with these of :data:`COMPUTE_UNITS`. Each set is then converted and
        loaded anew. What overflows on the way is known from the executor.
    progress
        Whether to show a progress bar; None: where stderr is a terminal.

    Raises
    ------
    InputError
        If something given cannot be used.
    """

    device: str = "cpu"
    cache_bytes: int | None = None
    seed: int = 0
    storage: str | None = None
    resume: bool = False
    jobs: int = 1
    cluster: str | None = None
    backend: str = "executor"
    compute_units: str = "CPU_AND_NE"
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.cache_bytes is not None:
            self._set(cache_bytes=count(self.cache_bytes, "cache_bytes", 0))
        self._set(jobs=count(self.jobs, "jobs"))
        if self.resume and self.storage is None:
            raise InputError("resume needs the storage of the run to go on with; give storage")
        if self.cluster is not None:
            self._check_cluster(self.cluster)
        choice(self.backend, "backend", BACKENDS)
        choice(self.compute_units, "compute_units", COMPUTE_UNITS)
        if self.backend != "executor" and (self.jobs > 1 or self.cluster is not None):
            raise InputError(
                f"backend {self.backend!r} evaluates in one process; leave jobs and cluster out"
            )
        self._set(seed=seed(self.seed))

    def _check_cluster(self, cluster: str) -> None:
        if not re.fullmatch(r"local:[1-9]\d{0,3}|[a-z]+://.+", cluster):
            raise InputError(
                f"cluster is {cluster!r}, expected tcp://host:port of a Dask scheduler, or local:4"
            )
        if self.jobs > 1:
            raise InputError(f"jobs is {self.jobs} and cluster {cluster!r}; give one of them")
        if self.device != "cpu":
            raise InputError(f"cluster {cluster!r} evaluates on CPUs; leave device out")


def group(value: Any, kind: type[G], name: str) -> G:
    """A group of options as given.

    Raises
    ------
    InputError
        If it is something else.
    """
    if not isinstance(value, kind):
        raise InputError(
            f"{name} is a {type(value).__name__}; expected mpsearch.{kind.__name__}(...)"
        )
    return value
