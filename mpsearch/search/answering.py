"""Evaluates a set of ops, in this process or in another one: the same call, the same answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..evaluation.evaluator import Evaluator
from ..evaluation.incremental import Incremental
from ..evaluation.metrics import Outputs
from ..program.graph import Node
from ..program.precision import Precision
from .response import Sketch
from .store import Answer, Errors


@dataclass(frozen=True, slots=True)
class Call:
    """An evaluation: what it is found by, and what it takes."""

    key: str
    precision: Precision
    searched: tuple[int, ...]
    limit: float

    def as_json(self) -> dict[str, Any]:
        """As numbers and strings; JSON has no infinity."""
        return {
            "key": self.key,
            "fp32": sorted(self.precision),
            "candidates": self.precision.count,
            "searched": list(self.searched),
            "limit": str(self.limit),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Call:
        """The inverse of :meth:`as_json`.

        Raises
        ------
        KeyError, TypeError, ValueError
            If it is something else.
        """
        count = int(found["candidates"])
        fp32 = frozenset(int(op) for op in found["fp32"])
        if any(not 0 <= op < count for op in fp32):
            raise ValueError("an op that there is not")
        searched = tuple(int(sample) for sample in found["searched"])
        return cls(str(found["key"]), Precision(fp32, count), searched, float(found["limit"]))


class Answerer:
    """Evaluates calls.

    Parameters
    ----------
    evaluator
        Over the samples that calls name.
    sketch
        Turns outputs into what is remembered of their errors.
    harmless
        Names of the ops that may be infinite or NaN; None where that is left to the loss.
    """

    def __init__(
        self,
        evaluator: Evaluator[Incremental],
        sketch: Sketch,
        harmless: frozenset[str] | None,
    ) -> None:
        self.evaluator = evaluator
        self.harmless = harmless
        self.sketch = sketch
        evaluator.backend.mark = harmless is not None

    def answer(
        self, call: Call, enough: Callable[[], bool] | None = None, remember: int | None = None
    ) -> Answer:
        """Evaluate a set, on the samples that are searched on now; counted as an evaluation.

        ``enough`` and ``remember`` are those of
        :meth:`mpsearch.evaluation.evaluator.Evaluator.evaluate`.

        Raises
        ------
        Stop
            If the run is to end.
        """
        errors: Errors = {}
        overflows: list[str] = []
        evaluator = self.evaluator

        def see(sample: int, profile: int, outputs: Outputs) -> None:
            error = self.sketch(sample, outputs)
            if error is not None:
                errors[sample, profile] = error
            overflows.extend(node.name for node in self.harmful(evaluator.backend.lost))

        measured = evaluator.evaluate(call.precision, call.limit, see, enough, remember)
        first = overflows[0] if overflows else ""
        return Answer(measured, tuple(evaluator.searched), first, errors)

    def harmful(self, lost: Iterable[Node]) -> list[Node]:
        """Of the ops that are infinite or NaN, those by which that does harm."""
        harmless = self.harmless
        return [] if harmless is None else [node for node in lost if node.name not in harmless]

    def ahead(self, call: Call) -> Answer:
        """Evaluate a set on the samples that it names, so that nothing is changed by it.

        Raises
        ------
        Stop
            If the run is to end.
        """
        evaluator, engine = self.evaluator, self.evaluator.backend
        before, count, ran = list(evaluator.searched), evaluator.evaluations, engine.executions
        evaluator.search_on(call.searched)
        try:
            return self.answer(call)
        finally:
            evaluator.search_on(before)
            evaluator.evaluations, engine.executions = count, ran
