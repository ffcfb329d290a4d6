"""Evaluates a set of ops, in this process or in another one: the same call, the same answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation.evaluator import Evaluator
from ..evaluation.incremental import Incremental
from ..evaluation.metrics import Outputs
from ..program.graph import Node
from ..program.precision import Precision
from .answer import Answer, Errors
from .response import Sketch


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


@dataclass(frozen=True, slots=True)
class Part:
    """Some samples of an evaluation, in their order."""

    call: Call
    samples: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a sample showed: its loss, its sketched error, and the ops that overflowed."""

    loss: float
    error: np.ndarray | None
    overflows: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """What a part gave: up to the first sample that broke the limit, and what that cost."""

    seen: dict[int, Seen]
    executions: int


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

    # -- in parts ----------------------------------------------------------------------------------

    def parted(self, call: Call, count: int) -> list[Part]:
        """An evaluation in so many parts at most, fewer where there are fewer samples.

        One part where the losses of samples do not stand for themselves, or where there are several
        numerics profiles, of which a later one is not always looked at.
        """
        evaluator, precision = self.evaluator, call.precision
        several = evaluator.backend.profiles > 1 and len(precision) < precision.count
        if several or not evaluator.by_sample:
            return [Part(call, call.searched)]
        count = min(count, len(call.searched))
        return [Part(call, call.searched[k::count]) for k in range(count)]

    def piece(self, part: Part) -> Piece:
        """Evaluate a part; not counted as an evaluation.

        Raises
        ------
        Stop
            If the run is to end.
        """
        evaluator, call = self.evaluator, part.call
        engine, parts = evaluator.backend, evaluator.metric.parts
        assert parts is not None
        executed, seen = engine.executions, {}
        for sample in part.samples:
            outputs = engine.outputs(call.precision, sample)
            loss = parts(evaluator.references[sample], outputs)[0]
            lost = tuple(node.name for node in self.harmful(engine.lost))
            seen[sample] = Seen(loss, self.sketch(sample, outputs), lost)
            if _breaks(loss, call.limit):
                break
        ran = engine.executions - executed
        engine.executions = executed
        return Piece(seen, ran)

    def whole(self, call: Call, pieces: Sequence[Piece], seconds: float) -> Answer:
        """The answer that :meth:`answer` would have given, from that of its parts."""
        seen = {sample: found for piece in pieces for sample, found in piece.seen.items()}
        order, losses = list(call.searched), []
        errors: Errors = {}
        overflows = ""
        for position, sample in enumerate(call.searched):
            found = seen[sample]
            losses.append(found.loss)
            overflows = overflows or next(iter(found.overflows), "")
            if found.error is not None:
                errors[sample, 0] = found.error
            if _breaks(found.loss, call.limit):
                order.insert(0, order.pop(position))
                break
        executions = sum(piece.executions for piece in pieces)
        measured = self.evaluator.judged(call.searched, losses, executions, seconds)
        return Answer(measured, tuple(order), overflows, errors)

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


def _breaks(loss: float, limit: float) -> bool:
    return loss > limit or loss == math.inf
