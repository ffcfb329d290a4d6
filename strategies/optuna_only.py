"""Strategy ``optuna``: nothing but Optuna, for comparison.

``sample``: TPE (Bergstra et al. 2011) over one boolean for every unit, with the budget as a
constraint, has used all trials, starting from the set of all units.
"""

from __future__ import annotations

import warnings

import optuna

from mpsearch.search.problem import Problem


def search(problem: Problem) -> None:
    """Sample sets until the trials are used up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=problem.question.seed)
    problem.record.study.enqueue_trial(dict.fromkeys(problem.names, True))
    for _ in range(max(problem.remaining, 1)):
        problem.sample(sampler, "sample", free=range(len(problem.everything)))
