"""What an evaluation gave, with all that a search goes by; as attributes of a trial and back."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from ..evaluation.evaluator import Measured
from ..program.precision import Precision

Errors = dict[tuple[int, int], np.ndarray]  # sample, profile -> sketched error

#: The attribute under which an answer stands.
_ANSWER = "answer"
#: MySQL takes 65,535 bytes of an attribute, its name and quotes included.
_ATTRIBUTE = 60_000
#: So many losses go into one.
_LOSSES = 1_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What an evaluation gave, with all that a search goes by.

    Attributes
    ----------
    measured
        The losses, and what they cost.
    searched
        The order of the samples after it.
    overflows
        An op for whose overflow the set was refused; empty if none.
    errors
        The sketched errors of the outputs (:class:`mpsearch.search.response.Sketch`).
    losses
        Those of single samples, by index.
    """

    measured: Measured
    searched: tuple[int, ...] = ()
    overflows: str = ""
    errors: Errors = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As numbers and strings; JSON has no infinity."""
        found = self.measured
        losses = str(found.loss), str(found.worst)
        return {
            "measured": [*losses, found.exact, found.executions, found.seconds],
            "searched": list(self.searched),
            "overflows": self.overflows,
            "errors": [
                [sample, profile, base64.b64encode(error.astype("<f4").tobytes()).decode()]
                for (sample, profile), error in self.errors.items()
            ],
            "losses": [[sample, str(loss)] for sample, loss in self.losses.items()],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Answer:
        """The inverse of :meth:`as_json`.

        Raises
        ------
        KeyError, TypeError, ValueError
            If it is something else.
        """
        loss, worst, exact, executions, seconds = found["measured"]
        measured = Measured(float(loss), float(worst), bool(exact), int(executions), float(seconds))
        errors = {
            (int(s), int(p)): np.frombuffer(base64.b64decode(text), "<f4").astype(np.float64)
            for s, p, text in found["errors"]
        }
        losses = {int(sample): float(loss) for sample, loss in found["losses"]}
        order = tuple(int(sample) for sample in found["searched"])
        return cls(measured, order, str(found["overflows"]), errors, losses)


def call(kind: str, precision: Precision, samples: Sequence[int], limit: float) -> str:
    """What an evaluation is found by again."""
    asked = repr((kind, precision.count, sorted(precision), list(samples), limit))
    return str(xxhash.xxh3_128_hexdigest(asked.encode()))


def attributes(answer: Answer) -> dict[str, Any]:
    """An answer as attributes of a trial, each short enough.

    Its sketched errors are most of it, or the losses where there are thousands of samples.
    """
    whole = answer.as_json()
    losses = whole.pop("losses")
    starts = range(0, len(losses), _LOSSES)
    parts: list[list[Any]] = [[]]
    size = 0
    for error in whole.pop("errors"):
        text = error[2]
        for start in range(0, len(text), _ATTRIBUTE // 2):
            piece = [*error[:2], text[start : start + _ATTRIBUTE // 2]]
            if size + len(piece[2]) > _ATTRIBUTE:
                parts.append([])
                size = 0
            parts[-1].append(piece)
            size += len(piece[2]) + 32
    more = {f"{_ANSWER} {i}": part for i, part in enumerate(parts) if part}
    more |= {f"{_ANSWER} losses {i}": losses[k : k + _LOSSES] for i, k in enumerate(starts)}
    return {_ANSWER: whole, **more}


def read_answer(attributes: Mapping[str, Any]) -> Answer:
    """The inverse of :func:`attributes`.

    Raises
    ------
    AttributeError, KeyError, TypeError, ValueError
        If it is something else.
    """
    texts: dict[tuple[int, int], str] = {}
    number = 0
    while (part := attributes.get(f"{_ANSWER} {number}")) is not None:
        for sample, profile, text in part:
            texts[sample, profile] = texts.get((sample, profile), "") + text
        number += 1
    errors = [[*key, text] for key, text in texts.items()]
    whole = attributes[_ANSWER]
    losses, number = list(whole.get("losses", [])), 0  # of a study begun before
    while (part := attributes.get(f"{_ANSWER} losses {number}")) is not None:
        losses += part
        number += 1
    return Answer.from_json({**whole, "errors": errors, "losses": losses})
