"""An Optuna sampler that proposes exchanges from the outputs of all that was tried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from .problem import Problem
from .question import Kept
from .record import FP32_OR_FP16


class ResponseSampler(optuna.samplers.BaseSampler):
    """Proposes the cheaper set with the least expected error (:mod:`mpsearch.search.response`).

    Every proposal is the set in the middle with at most two units put in and three taken out; what
    changes is its relative search space. Where no cheaper set is left to propose, or nothing is
    known of the middle's outputs, that is empty.

    Parameters
    ----------
    problem
        Whose trials are learned from.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._middle: Kept = problem.everything
        self._units: Sequence[int] = ()
        self._next: dict[str, bool] = {}

    def around(self, middle: Kept, units: Sequence[int]) -> None:
        """Propose changes of ``middle``, a set that met the budget, in these units."""
        self._middle, self._units = middle, units

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        self._next = self._propose()
        return dict.fromkeys(self._next, FP32_OR_FP16)

    def likely(self, count: int) -> list[Kept]:
        """What is proposed next, and what is likely to be after it; as far as can be told now."""
        return list(islice(self._proposals(), count))

    def _proposals(self) -> Iterator[Kept]:
        problem, middle = self._problem, self._middle
        response = problem.response(middle, self._units)
        if not response.informed:
            return
        question = problem.question
        for kept in response.exchanges(question.cost):
            if problem.record.known(kept) is None and question.price(kept) < question.price(middle):
                yield kept

    def _propose(self) -> dict[str, bool]:
        kept, names = next(self._proposals(), None), self._problem.names
        if kept is None:
            return {}
        return {names[unit]: unit in kept for unit in sorted(kept ^ self._middle)}

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
