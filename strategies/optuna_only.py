"""Strategy ``optuna``: nothing but Optuna, for comparison.

``sample``: TPE (Bergstra et al. 2011) over one boolean for every unit, with the budget as a
constraint, has used all trials, starting from the set of all units.
"""

from __future__ import annotations

import optuna

from mpsearch.search.problem import Problem

from ._study import open_study, over


def search(problem: Problem) -> None:
    """Sample sets until the trials are used up."""
    names = [f"{i}:{unit.name}" for i, unit in enumerate(problem.units)]

    def objective(trial: optuna.Trial) -> float:
        chosen = [trial.suggest_categorical(name, [False, True]) for name in names]
        kept = frozenset(i for i, fp32 in enumerate(chosen) if fp32)
        outcome = problem.try_(kept, "sample")
        trial.set_user_attr("kept", sorted(kept))
        trial.set_constraint("budget", over(problem, outcome))
        return problem.price(kept)

    with open_study(problem, multivariate=False) as study:
        study.enqueue_trial(dict.fromkeys(names, True))
        study.optimize(objective, n_trials=max(problem.remaining, 1))
