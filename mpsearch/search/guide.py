"""What is known of a set before it is tried: the rounding model, and what the trials showed.

Both only propose; true evaluations decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cachetools import LRUCache

from ..evaluation.evaluator import Evaluator
from ..evaluation.incremental import Incremental
from .answer import Errors
from .question import Kept, Question
from .recording import rounding_model_of
from .response import Response, Sketch
from .rounding import RoundingModel

#: What the sketched errors of trials may take: a proof by exhaustion makes 100,000 of them.
_ERROR_BYTES = 64 << 20


class Guide:
    """Predicts what casting a unit does, and which exchanges are worth a trial.

    Parameters
    ----------
    evaluator
        Over the samples that the model of rounding is made from.

    Attributes
    ----------
    sketch
        Turns outputs into what is remembered of their errors.
    """

    def __init__(self, evaluator: Evaluator[Incremental], seed: int) -> None:
        self._evaluator = evaluator
        self._seed = seed
        self._model: RoundingModel | None = None
        self._beside: tuple[Kept, frozenset[int]] | None = None
        self._orders: dict[tuple[Any, ...], list[int]] = {}
        self.sketch = Sketch(evaluator.references, seed)
        self._errors: LRUCache[Kept, Errors] = LRUCache(
            _ERROR_BYTES, getsizeof=lambda found: 200 + sum(e.nbytes for e in found.values())
        )

    @property
    def model(self) -> RoundingModel:
        """The first-order model of rounding, built when first asked for.

        Raises
        ------
        Stop
            If the run ends before it is built.
        """
        if self._model is None:
            self._model = rounding_model_of(self._evaluator, self._seed)
        return self._model

    def keep_order(self, question: Question) -> list[int]:
        """Units in the order in which the model would keep them FP32, the worst first."""
        key = question.units, question.objective, question.always
        if key not in self._orders:
            priced = max(sum(c > 0 for c in question.cost), 1)
            mean = sum(question.cost) / priced or 1.0
            cost = [c / mean for c in question.cost]
            units = [u.ops for u in question.units]
            self._orders[key] = self.model.keep_order(units, cost, question.pinned_fp16)
        return list(self._orders[key])

    def harm(self, question: Question, unit: int, kept: Iterable[int]) -> float:
        """The model's squared error for casting a unit of ``kept`` as well."""
        return self.model.harm(question.units[unit].ops, self._fp16(question, kept))

    def relief(self, question: Question, unit: int, kept: Iterable[int]) -> float:
        """The model's squared error that goes when a unit outside ``kept`` joins it."""
        return self.model.relief(question.units[unit].ops, self._fp16(question, kept))

    def _fp16(self, question: Question, kept: Iterable[int]) -> frozenset[int]:
        """The ops in FP16 beside a set: made once for all the units that are asked about in it."""
        if not isinstance(kept, frozenset):  # what can change is not remembered
            return question.precision(kept).fp16
        if self._beside is None or self._beside[0] is not kept:
            self._beside = kept, question.precision(kept).fp16
        return self._beside[1]

    def boundary(self, question: Question, ranking: Sequence[int]) -> int:
        """How many units of a ranking's head the model would keep FP32 to meet the limit.

        A guess where the limit is no relative L2 error.
        """
        if question.limit <= 0:
            return len(ranking) // 4
        fp16 = set(question.pinned_fp16)
        total = self.model.harm(fp16, ())
        for place in range(len(ranking) - 1, -1, -1):
            ops = question.units[ranking[place]].ops
            total += self.model.harm(ops, fp16)
            fp16.update(ops)
            if total > question.limit**2:
                return place + 1
        return 0

    # -- what the trials showed ----------------------------------------------------------------

    def learn(self, kept: Kept, errors: Errors) -> None:
        """Take in the sketched errors of a trial."""
        if errors:
            self._errors[kept] = {**(self._errors.get(kept) or {}), **errors}

    def response(self, question: Question, middle: Kept, units: Iterable[int]) -> Response:
        """What the trials say of sets that differ from ``middle``, one that met, in ``units``."""
        fp16 = self._fp16(question, middle)
        effects = {}
        for unit in units:
            known = self.model.harm if unit in middle else self.model.relief
            effects[unit] = known(question.units[unit].ops, fp16)
        return Response(middle, dict(self._errors), effects)
