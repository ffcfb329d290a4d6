"""What ``optimize`` returns."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import files
from .._ct import ct, quiet
from ..errors import InfeasibleError, InputError
from ..explain.remedies import Remedy
from ..package import emission
from ..package.config import Config, KeptOp
from ..package.weights import Stored
from ..report import html
from ..search.cost import Cost
from ..search.record import Trial
from .plain import number

PACKAGE = "model.mlpackage"


@dataclass(frozen=True, slots=True)
class OpRow:
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
    reads: list[str]


@dataclass(slots=True)
class Result:
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
        The errors of all-FP16 and all-FP32 (the floor) on the calibration data; all-FP16's is NaN
        where there was no time to measure it.
    heldout_error
        The error of the written package on the held-out data; None without any.
    searched_error
        The error that the search saw for its set.
    fp32_ops
        The names of the ops kept in FP32, in execution order.
    kept
        The same with type, layer and sensitivity.
    candidate_ops
        How many ops could be chosen.
    evaluations, op_executions, forward_equivalents, seconds
        What the search cost: vectors evaluated; single ops run; measured op time over that of one
        forward of all calibration samples; wall time. What is measured afterwards for the report
        (each kept op alone) is not in the first three.
    lower_bound, gap
        At least so many ops must stay FP32 as :mod:`mpsearch.search.bound` assumes, and
        how many more are kept; None where the trials contradict it, where ops are pinned, and where
        something else than ops was minimised.
    proven
        Whether every smaller set was tried and broke the budget (``prove``).
    minimised
        What was minimised.
    pinned_by_hazard
        Ops of ``fp32_ops`` that were not searched but kept FP32 for a known runtime fault
        (:mod:`mpsearch.explain.hazards`).
    tolerated_overflows
        Ops left in FP16 whose results overflow on the calibration data where FP32's are finite.
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
    weights
        What came of storing weights otherwise (``weights``); None where that was not asked for.
    package_bytes
        The package on disk.
    not_measured
        What the end of the time left no room for: ``error_fp16``, ``alone`` (errors and verdicts of
        the kept ops), ``sensitivity`` (of all ops), ``lower_bound``, ``remedies``.
    understood
        What the data was taken for: how many samples, of which inputs.
    explanation
        One sentence for people.
    history, study
        Every trial, and Optuna's study where the strategy ran one.
    """

    status: str
    budget: float
    metric: str
    error: float
    error_fp16: float
    error_fp32: float
    candidate_ops: int
    evaluations: int
    op_executions: int
    forward_equivalents: float
    seconds: float
    heldout_error: float | None = None
    searched_error: float | None = None
    kept: list[KeptOp] = field(default_factory=list)
    lower_bound: int | None = None
    proven: bool = False
    minimised: str = "ops"
    pinned_by_hazard: list[str] = field(default_factory=list)
    tolerated_overflows: list[str] = field(default_factory=list)
    casts: int = 0
    costs: dict[str, Cost] = field(default_factory=dict)
    islands: list[list[str]] = field(default_factory=list)
    ops: list[OpRow] = field(default_factory=list)
    front: list[tuple[int, float | None]] = field(default_factory=list)
    remedies: list[Remedy] = field(default_factory=list)
    weights: Stored | None = None
    package_bytes: int = 0
    not_measured: list[str] = field(default_factory=list)
    understood: str = ""
    explanation: str = ""
    notes: list[str] = field(default_factory=list)
    history: list[Trial] = field(default_factory=list)
    study: Any = None
    config: Config | None = None
    _selector_source: str = ""
    _scratch: files.Room | None = None

    @property
    def fp32_ops(self) -> list[str]:
        return [op.name for op in self.kept]

    @property
    def gap(self) -> int | None:
        return None if self.lower_bound is None else len(self.kept) - self.lower_bound

    @property
    def met(self) -> bool:
        """Whether the budget is met on calibration and held-out data."""
        return self.status in ("met", "fp16_suffices")

    @property
    def op_selector(self) -> emission.Selector:
        """For ``ct.transform.FP16ComputePrecision(op_selector=...)``: True = cast to FP16."""
        return emission.selector(self.fp32_ops)

    def _package(self) -> Path:
        if self._scratch is None:
            raise InfeasibleError(f"there is no package: {self.explanation}")
        return self._scratch.path / PACKAGE

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
        return {
            "status": self.status,
            "budget": self.budget,
            "metric": self.metric,
            "error": number(self.error),
            "error_fp16": number(self.error_fp16),
            "error_fp32": number(self.error_fp32),
            "heldout_error": number(self.heldout_error),
            "searched_error": number(self.searched_error),
            "fp32_ops": self.fp32_ops,
            "candidate_ops": self.candidate_ops,
            "lower_bound": self.lower_bound,
            "gap": self.gap,
            "proven": self.proven,
            "minimised": self.minimised,
            "pinned_by_hazard": self.pinned_by_hazard,
            "tolerated_overflows": self.tolerated_overflows,
            "evaluations": self.evaluations,
            "op_executions": self.op_executions,
            "forward_equivalents": round(self.forward_equivalents, 3),
            "casts": self.casts,
            "seconds": round(self.seconds, 3),
            "explanation": self.explanation,
            "not_measured": self.not_measured,
            "understood": self.understood,
            "notes": self.notes,
            "costs": {name: asdict(cost) for name, cost in self.costs.items()},
            "package_bytes": self.package_bytes,
            "weights": None if self.weights is None else asdict(self.weights),
            "kept": [asdict(op) for op in self.kept],
            "islands": self.islands,
            "remedies": [{**asdict(r), "code": r.code} for r in self.remedies],
            "front": self.front,
            "ops": [asdict(op) for op in self.ops],
            "trials": [
                {
                    "pass": t.asked_by,
                    "fp32_ops": t.fp32_ops,
                    "error": number(t.loss),
                    "met": t.met,
                    "exact": t.exact,
                }
                for t in self.history
            ],
        }

    def save(self, path: str | Path) -> Path:
        """Write the package, ``op_selector.py`` and the JSON files, and ``report.html``.

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
        if self.config is None:
            raise InfeasibleError(f"there is nothing to write: {self.explanation}")
        target = self._place(Path(path))
        with files.written(target, files.foreign) as out:
            out.mkdir()
            if self._scratch is not None:
                shutil.copytree(self._package(), out / PACKAGE)
            (out / "op_selector.py").write_text(self._selector_source, encoding="utf-8")
            self.config.write(out / "precision.json")
            (out / "result.json").write_text(json.dumps(self.as_dict(), indent=2) + "\n")
            text = html.render(self.as_dict(), asdict(self.config))
            (out / "report.html").write_text(text, encoding="utf-8")
            files.write_manifest(out, f"mpsearch {self.config.versions['mpsearch']}")
        return target

    def _place(self, path: Path) -> Path:
        """``path``, or a place beside it where the result there is the better one."""
        if self.status not in ("interrupted", "unwritten") or files.foreign(path) is not None:
            return path
        try:
            former = files.read_json(path / "result.json", "")
            kept, status = len(former["fp32_ops"]), former["status"]
        except (InputError, KeyError, TypeError):
            return path
        worse = status in ("interrupted", "unwritten") and kept >= len(self.kept)
        return path if worse else path.with_name(f"{path.name}-interrupted")
