"""Which units to keep in FP32 first, as the model of rounding predicts.

It only proposes; evaluations decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import numpy as np

from ..evaluation.evaluator import Evaluation, Evaluator
from ..program.precision import Precision
from .problem import Problem, UnitSet
from .rounding import OVERFLOW, RoundingModel
from .rounding_hooks import rounding_model_of


def _squared_error(found: Evaluation) -> float:
    """The squared relative L2 error of an evaluation."""
    if not found.errors or any(error is None for error in found.errors):
        return OVERFLOW
    return max(float(np.square(e, dtype=float).sum()) for e in found.errors if e is not None)


class Ranking:
    """Predicts what casting units does.

    Parameters
    ----------
    problem
        Whose units.
    evaluator
        Over the samples that the model is made from.
    """

    def __init__(self, problem: Problem, evaluator: Evaluator) -> None:
        self._problem = problem
        self._evaluator = evaluator
        self._fp16: tuple[UnitSet, frozenset[int]] | None = None

    @cached_property
    def model(self) -> RoundingModel:
        """The first-order model of rounding, built when first asked for.

        Ops that have no gradient, such as those before a loop or a comparison, are run: each alone
        in FP16, on the first sample.

        Raises
        ------
        Stop
            If the run ends before it is built.
        """
        model = rounding_model_of(self._evaluator, self._problem.seed)
        count = len(self._problem.ops)
        every = frozenset(range(count))
        for op in sorted(every):
            if model.harm((op,), ()) == 0 and not self._evaluator.engine.ending.limited:
                found = self._evaluator.evaluate(Precision(every - {op}, count), 0)
                model.add(frozenset({op}), _squared_error(found))
        return model

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Units in the order in which to keep them FP32, the most worthwhile first."""
        problem = self._problem
        priced = max(sum(c > 0 for c in problem.cost), 1)
        mean = sum(problem.cost) / priced or 1.0
        cost = [c / mean for c in problem.cost]
        units = [u.ops for u in problem.units]
        return tuple(self.model.keep_order(units, cost, problem.pinned_fp16))

    def predicted(self, fp32: Iterable[int]) -> float:
        """The squared relative L2 error of a set; what overflows is left out."""
        return self.model.total(self._problem.precision(fp32).fp16)

    def harm(self, unit: int, fp32: UnitSet) -> float:
        """The squared error that casting a unit of ``fp32`` adds."""
        return self.model.harm(self._problem.units[unit].ops, self._ops_in_fp16(fp32))

    def relief(self, unit: int, fp32: UnitSet) -> float:
        """The squared error that goes when a unit outside ``fp32`` joins it."""
        return self.model.relief(self._problem.units[unit].ops, self._ops_in_fp16(fp32))

    def alone(self, unit: int) -> float:
        """The squared error of a unit that alone is FP16."""
        return self.model.harm(self._problem.units[unit].ops, ())

    def by_relief(self, fp32: UnitSet) -> list[int]:
        """The units outside a set, those first that relieve most for what they cost."""
        cost = self._problem.cost
        relief = {u: self.relief(u, fp32) for u in self._problem.all_units - fp32}
        return sorted(relief, key=lambda u: (-relief[u] / max(cost[u], 1e-9), u))

    def _ops_in_fp16(self, fp32: UnitSet) -> frozenset[int]:
        """The ops in FP16 beside a set, made once for all units that are asked about in it."""
        if self._fp16 is None or self._fp16[0] is not fp32:
            self._fp16 = fp32, self._problem.precision(fp32).fp16
        return self._fp16[1]
