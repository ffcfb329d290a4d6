"""How strategies open an Optuna study."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna

from mpsearch.search.problem import Problem, Trial


@contextmanager
def open_study(problem: Problem, multivariate: bool) -> Iterator[optuna.Study]:
    """A study with a TPE sampler that knows the budget as a constraint, kept on the problem."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=problem.seed, multivariate=multivariate)
        problem.study = optuna.create_study(
            direction="minimize", sampler=sampler, storage=problem.storage
        )
        yield problem.study


def over(problem: Problem, trial: Trial) -> float:
    """By how much a trial breaks the budget, as Optuna takes constraints: 0 or less where met."""
    excess = min(trial.loss - problem.budget, 1e6)
    return excess if trial.met else max(excess, 1e-12)
