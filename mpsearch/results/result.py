"""What ``optimize`` answers."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from .. import files
from .._ct import ct, quiet
from ..errors import InfeasibleError, InputError
from ..explain.remedies import Remedy
from ..files import printable, read_json
from ..package import emission
from ..package.config import Config, KeptOp
from ..package.weights import Stored
from ..report import html, text
from ..scaling.exponents import Scale, ScaledTensor
from ..scaling.patterns import Rewrite
from ..search.cost import Cost
from ..temporary import TemporaryFolder
from ..usercode import reason
from . import unfinished
from .answer import Answer

PACKAGE = "model.mlpackage"
_LOGGER = logging.getLogger(__name__)


class OpRow(msgspec.Struct, frozen=True):
    """One candidate op, for the report.

    Attributes
    ----------
    fp32
        Whether it is FP32 in the package.
    sensitivity
        The relative L2 error when it alone is FP16, predicted to first order
        (:mod:`mpsearch.search.rounding`); None where it overflows.
    reads
        The candidate ops whose results it reads, by name.
    """

    name: str
    type: str
    layer: str
    line: str
    fp32: bool
    sensitivity: float | None
    reads: tuple[str, ...]


class TrialRow(msgspec.Struct, frozen=True, rename={"asked_by": "pass"}):
    """One evaluation of the search.

    Attributes
    ----------
    asked_by
        The pass that asked (``pass`` in JSON).
    fp32_ops
        How many ops were FP32.
    error
        In the metric; None where infinite, a lower bound where not ``exact``.
    met
        Whether it was within the budget that was searched with last.
    """

    asked_by: str
    fp32_ops: int
    error: float | None
    met: bool
    exact: bool


class SequenceStep(msgspec.Struct, frozen=True):
    """A set of the sequence that was tested on held-out samples, the safest first.

    Attributes
    ----------
    fp32_ops
        How many ops were FP32.
    broken, samples
        On how many held-out samples it broke the budget, of how many.
    holds
        Whether so few break it that the coverage can be promised.
    """

    fp32_ops: int
    broken: int
    samples: int
    holds: bool


class Absorption(msgspec.Struct, frozen=True):
    """An op left in FP16 that overflows on the samples, and does no harm by that.

    Attributes
    ----------
    absorbed_by
        The ops that give the same for infinity as for the value itself, for every input
        (:mod:`mpsearch.program.infinity`).
    """

    name: str
    absorbed_by: tuple[str, ...]


class Headroom(msgspec.Struct, frozen=True):
    """How near an op comes to FP16's range.

    Attributes
    ----------
    samples
        What FP16 holds, over the largest magnitude that the op rounds in the samples: below 1 where
        it overflowed.
    next
        The same over what the next input stays below with a chance of 0.999
        (:class:`mpsearch.evaluation.reach.Magnitude`).
    rule
        What follows from it: ``overflows`` and ``may overflow`` (FP32), ``may vanish`` (FP32:
        something is divided by it, and both numbers are its smallest magnitude over what FP16
        rounds to 0), ``absorbed`` (FP16 all the same), ``fits``.
    """

    name: str
    samples: float
    next: float
    rule: str


class Rescaling(msgspec.Struct, frozen=True):
    """How a program is scaled by powers of two (:mod:`mpsearch.scaling.exponents`).

    Attributes
    ----------
    mode
        ``fold`` or ``insert``.
    scales
        What ops take times a power of two.
    tensors
        What is computed otherwise.
    folded, inserted
        How many constants are scaled, and multiplications inserted.
    words
        The same as a sentence.
    """

    mode: str
    scales: tuple[Scale, ...]
    tensors: tuple[ScaledTensor, ...]
    folded: int
    inserted: int
    words: str


@dataclass(frozen=True, slots=True)
class Files:
    """What a result is written from.

    Attributes
    ----------
    directory
        Where the package is; None where there is none.
    selector_source
        The text of ``op_selector.py``.
    """

    config: Config
    selector_source: str
    directory: TemporaryFolder | None


class Result(Answer, frozen=True, kw_only=True, dict=True):
    """The outcome of a search.

    Attributes
    ----------
    status
        ``met``, ``fp16_suffices``, ``infeasible``, ``interrupted``, or ``unwritten``: a set was
        found whose package could not be written.
    budget, metric
        As given.
    error
        The error of the written package, read back and run on the calibration data; of the
        all-FP32 program where nothing was written.
    error_fp16, error_fp32
        The errors of all-FP16 and all-FP32 (the floor) on the calibration data; None for all-FP16
        where there was no time to measure it.
    heldout_error
        The error of the written package on the held-out data; None without any.
    heldout_samples, heldout_broken
        How many held-out samples the package was run on, and how many broke the budget.
    coverage, confidence
        At least this share of inputs like the held-out ones meets the budget, with this
        confidence; None where nothing can be promised.
    sequence
        The nested sets that were tested on held-out samples, the safest first: FP32 ops against the
        share of inputs that breaks the budget.
    kept
        The ops kept in FP32, in execution order.
    candidate_ops
        How many ops could be chosen.
    evaluations, op_executions, forward_equivalents, seconds
        What the search cost: sets evaluated; single ops run; measured op time over that of one
        forward of all calibration samples; wall time. What is measured afterwards for the report
        (each kept op alone) is not in the first three.
    lower_bound
        At least so many ops must stay FP32 by the conflicts that were found, if keeping more in
        FP32 never hurts; None where a trial shows that it does, where ops are pinned, and where
        something else than ops was minimized.
    proven
        Whether every smaller set was tried and broke the budget (``Limits(prove=True)``).
    minimized
        What was minimized.
    pinned_by_hazard
        Ops of ``fp32_ops`` that were not searched but kept FP32 for a known runtime fault
        (:mod:`mpsearch.explain.hazards`).
    absorbed_overflows
        Ops left in FP16 that overflow on the samples, which the program absorbs for every input.
    headroom
        The ops that come near FP16's range, or leave it, the nearest first.
    tolerated_overflows
        With ``tolerate_overflow``: ops left in FP16 whose results overflow on the calibration data
        where FP32's are finite.
    casts
        Casts between FP16 and FP32 in the written package.
    costs
        What ``fp16``, the ``package`` and ``fp32`` cost (:class:`mpsearch.search.cost.Cost`).
    islands
        The connected groups of FP32 ops, each in execution order.
    ops
        Every candidate op, in execution order.
    front
        FP32 ops and error of the trials that no other beats in both.
    remedies
        Changes to the PyTorch model that would cost less (:mod:`mpsearch.explain.remedies`).
    rescaling
        How the program is scaled; None where it is not.
    rewrites
        What is rewritten (:mod:`mpsearch.scaling.stable`).
    rescale_hint
        What ``--rescale`` would give where it is off; empty where that is not better.
    weights
        What came of storing weights otherwise; None where that was not asked for.
    package_bytes
        The package on disk.
    not_measured
        What the end of the time left no room for: ``error_fp16``, ``alone`` (errors and verdicts of
        the kept ops), ``sensitivity`` (of all ops), ``lower_bound``, ``rescale``
        (the hint), ``remedies``.
    understood
        What the data was taken for: how many samples, of which inputs.
    explanation
        One sentence for people.
    trials
        Every set that the search evaluated, in order.
    """

    ERRORS: ClassVar[tuple[str, ...]] = ("error", "error_fp16", "error_fp32")

    status: str
    budget: float
    metric: str
    error: float
    error_fp16: float | None
    error_fp32: float
    candidate_ops: int
    evaluations: int
    op_executions: int
    forward_equivalents: float
    seconds: float
    minimized: str
    understood: str
    explanation: str
    notes: tuple[str, ...]
    trials: tuple[TrialRow, ...]
    kept: tuple[KeptOp, ...]
    costs: dict[str, Cost]
    islands: tuple[tuple[str, ...], ...]
    ops: tuple[OpRow, ...]
    front: tuple[tuple[int, float | None], ...]
    heldout_error: float | None = None
    heldout_samples: int = 0
    heldout_broken: int = 0
    coverage: float | None = None
    confidence: float | None = None
    sequence: tuple[SequenceStep, ...] = ()
    lower_bound: int | None = None
    proven: bool = False
    pinned_by_hazard: tuple[str, ...] = ()
    tolerated_overflows: tuple[str, ...] = ()
    absorbed_overflows: tuple[Absorption, ...] = ()
    headroom: tuple[Headroom, ...] = ()
    casts: int = 0
    remedies: tuple[Remedy, ...] = ()
    rescaling: Rescaling | None = None
    rewrites: tuple[Rewrite, ...] = ()
    rescale_hint: str = ""
    weights: Stored | None = None
    package_bytes: int = 0
    not_measured: tuple[str, ...] = ()

    @property
    def fp32_ops(self) -> list[str]:
        """The names of the ops kept in FP32, in execution order."""
        return [op.name for op in self.kept]

    @property
    def gap(self) -> int | None:
        """How many more ops are kept than the lower bound asks for; None without a bound."""
        return None if self.lower_bound is None else len(self.kept) - self.lower_bound

    @property
    def met(self) -> bool:
        """Whether the budget is met on calibration and held-out data."""
        return self.status in ("met", "fp16_suffices")

    @property
    def op_selector(self) -> emission.Selector:
        """For ``ct.transform.FP16ComputePrecision(op_selector=...)``: True = cast to FP16."""
        return emission.selector(self.fp32_ops)

    # -- for people ----------------------------------------------------------------------------

    def __repr__(self) -> str:
        names = ", ".join(self.fp32_ops[:4])
        more = f" and {len(self.kept) - 4} more" if len(self.kept) > 4 else ""
        lines = [
            f"Result: {self.status}, {len(self.kept)} of {self.candidate_ops} ops in FP32",
            f"  {self.metric} {text.value(self.error)}, budget {self.budget:g}, held-out "
            f"{text.value(self.heldout_error)}, all FP16 {text.value(self.error_fp16)}",
        ]
        return printable("\n".join([*lines, *([f"  {names}{more}"] if names else [])]))

    def summary(self) -> str:
        """What ``mpsearch optimize`` prints, as plain text of 78 columns."""
        return text.summary(self, None, lambda line, mood: line)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html.notebook(self.as_dict(), self.met)

    def to_frame(self) -> Any:
        """A ``pandas.DataFrame`` of all candidate ops, by name, in execution order.

        Its columns are those of :class:`OpRow`.

        Raises
        ------
        ImportError
            Without pandas.
        """
        import pandas  # not among what mpsearch needs

        rows = [msgspec.structs.asdict(row) for row in self.ops]
        columns = [field.name for field in msgspec.structs.fields(OpRow)]
        return pandas.DataFrame(rows, columns=columns).set_index("name")

    # -- what stands behind it -----------------------------------------------------------------

    def with_files(self, written: Files | None, study: Any) -> Result:
        """The same result, with what it can be saved from and the study of its search."""
        self.__dict__.update(_files=written, study=study)
        return self

    @property
    def study(self) -> Any:
        """Optuna's study with every evaluation; None for a result that was read from a file."""
        return self.__dict__.get("study")

    @property
    def config(self) -> Config | None:
        """What ``apply`` and ``check`` take; None where no set was found."""
        written = self._files
        return None if written is None else written.config

    @property
    def _files(self) -> Files | None:
        found: Files | None = self.__dict__.get("_files")
        return found

    def _package(self) -> Path:
        if self._files is None or self._files.directory is None:
            raise InfeasibleError(f"there is no package: {self.explanation}")
        return self._files.directory.path / PACKAGE

    @property
    def mlmodel(self) -> Any:
        """The mixed-precision ``MLModel``.

        Raises
        ------
        InfeasibleError
            If the budget could not be met.
        """
        with quiet():
            return ct.models.MLModel(str(self._package()))

    def as_dict(self) -> dict[str, Any]:
        """The content of ``result.json``. Infinite errors are null."""
        found = Answer.as_dict(self)
        return {**found, "fp32_ops": self.fp32_ops, "gap": self.gap}

    def save(self, path: str | Path, study: str | Path | None = None) -> Path:
        """Write the package, ``op_selector.py`` and the JSON files, and ``report.html``.

        ``study`` is an SQLite file with the study of the search, to be written with them.

        The folder appears as a whole or not at all; one written before is replaced. What was cut
        short never replaces what was finished, nor what is better: it is then written beside it,
        as ``PATH-interrupted``. Where there is no package, all else is written.

        Returns
        -------
        Path
            The folder written.

        Raises
        ------
        InfeasibleError
            If the budget could not be met.
        InputError
            If the folder cannot be written, or holds what mpsearch did not write.
        """
        source = self._files
        if source is None:
            raise InfeasibleError(f"there is nothing to write: {self.explanation}")
        target = self._place(Path(path))
        with files.written(target, files.foreign) as out:
            out.mkdir()
            if source.directory is not None:
                shutil.copytree(self._package(), out / PACKAGE)
            (out / "op_selector.py").write_text(source.selector_source, encoding="utf-8")
            if source.config.scales or source.config.rewrites:
                rescale = emission.rescale_source(source.config.rewrites, source.config.scales)
                (out / "rescale.py").write_text(rescale, encoding="utf-8")
            source.config.write(out / "precision.json")
            content = self.as_dict()
            (out / "result.json").write_bytes(
                msgspec.json.format(msgspec.json.encode(content)) + b"\n"
            )
            if study is not None:
                unfinished.copy(Path(study), out / unfinished.STUDY)
            self._write_report(out / "report.html", content)
            files.write_manifest(out, f"mpsearch {source.config.versions['mpsearch']}")
        return target

    def _write_report(self, path: Path, content: dict[str, Any]) -> None:
        """Write the report; that it cannot be drawn is no reason to lose what was found."""
        assert self._files is not None
        try:
            page = html.render(content, self._files.config.as_dict())
        except Exception as error:  # whatever the libraries that draw it make of the environment
            _LOGGER.warning(
                "report.html was not written (%s); mpsearch report DIR writes it", reason(error)
            )
        else:
            path.write_text(page, encoding="utf-8")

    def _place(self, path: Path) -> Path:
        """``path``, or a place beside it where the result there is the better one."""
        if self.status not in ("interrupted", "unwritten") or files.foreign(path) is not None:
            return path
        try:
            former = read(path / "result.json")
        except InputError:
            return path
        worse = former.status in ("interrupted", "unwritten")
        worse &= len(former.kept) >= len(self.kept)
        return path if worse else path.with_name(f"{path.name}-interrupted")


def read(path: str | Path) -> Result:
    """Read a ``result.json``.

    Raises
    ------
    InputError
        If the file is missing, is no JSON, or no result of this version.
    """
    file = Path(path)
    return Result.from_dict(read_json(file, "a result.json that optimize wrote"), str(file))
