"""Strategy ``optuna``: nothing but Optuna, for comparison.

``sample``: TPE (Bergstra et al. 2011) over one boolean for every unit, with the budget as a
constraint, has used all trials, starting from the set of all units.
"""

from __future__ import annotations

import warnings

import optuna

from mpsearch.search.search import Search


def search(search: Search) -> None:
    """Sample sets until the trials are used up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=search.problem.seed)
    search.evaluations.study.optuna.enqueue_trial(dict.fromkeys(search.problem.names, True))
    for _ in range(max(search.remaining, 1)):
        search.sample(sampler, "sample", range(len(search.problem.units)))
