"""An Optuna sampler that proposes exchanges from the outputs of all that was tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from .problem import UnitSet
from .response import Response
from .search import Search, hits_all
from .study import FP32_OR_FP16


class ResponseSampler(optuna.samplers.BaseSampler):
    """Proposes the cheaper set with the least expected error (:mod:`mpsearch.search.response`).

    Every proposal is the best set with at most two units put in and three taken out; what changes
    is its relative search space. Where no cheaper set is left to propose, or nothing is known of
    the best set's outputs, that is empty.

    Parameters
    ----------
    search
        Whose trials are learned from.
    units
        Which units may change.
    """

    def __init__(self, search: Search, units: Sequence[int]) -> None:
        self._search = search
        self._units = units
        self._next: dict[str, bool] = {}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        self._next = self._propose()
        return dict.fromkeys(self._next, FP32_OR_FP16)

    def _propose(self) -> dict[str, bool]:
        search, problem = self._search, self._search.problem
        assert search.best is not None
        middle = search.best.fp32
        response = self._response(middle)
        if not response.informed:
            return {}
        for units in response.exchanges(problem.cost):
            cheaper = problem.rank(units) < problem.rank(middle)
            if cheaper and search.known(units) is None and hits_all(search.conflicts, units):
                return {problem.names[unit]: unit in units for unit in sorted(units ^ middle)}
        return {}

    def _response(self, middle: UnitSet) -> Response:
        search, ranking = self._search, self._search.ranking
        effects = {
            unit: ranking.harm(unit, middle) if unit in middle else ranking.relief(unit, middle)
            for unit in self._units
        }
        problem, evaluations = search.problem, search.evaluations
        errors = {t.fp32: evaluations.errors(problem.precision(t.fp32)) for t in search.trials}
        return Response(middle, {k: found for k, found in errors.items() if found}, effects)

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        return {name: self._next[name] for name in search_space}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        raise NotImplementedError(f"{param_name!r} is not part of the proposal")
