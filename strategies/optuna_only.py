"""Strategy ``optuna``: nothing but Optuna, for comparison.

``sample``: TPE (Bergstra et al. 2011) over one boolean for every unit, with the budget as a
constraint, has used all trials, starting from the set of all units.
"""

from __future__ import annotations

import warnings

import optuna

from mpsearch.problem import Problem


def search(problem: Problem) -> None:
    """Sample sets until the trials are used up."""
    names = [f"{i}:{unit.name}" for i, unit in enumerate(problem.units)]

    def objective(trial: optuna.Trial) -> float:
        chosen = [trial.suggest_categorical(name, [False, True]) for name in names]
        kept = frozenset(i for i, fp32 in enumerate(chosen) if fp32)
        outcome = problem.try_(kept, "sample")
        over = min(outcome.loss - problem.budget, 1e6)
        trial.set_constraint("budget", over if outcome.met else max(over, 1e-12))
        return problem.price(kept)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(seed=problem.seed)
        problem.study = optuna.create_study(direction="minimize", sampler=sampler)
        problem.study.enqueue_trial(dict.fromkeys(names, True))
        problem.study.optimize(objective, n_trials=max(problem.remaining, 1))
