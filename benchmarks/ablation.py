"""Does every pass and every constant of ``greedy-optuna`` pay?

python -m benchmarks.ablation [--half held-out] [--seeds 1 2] [--tight] [--only WORD] [cases ...]

Each variant is the default strategy with one thing changed; all run on the same prepared cases,
each on an evaluator of its own. The table gives, over all cases and seeds: FP32 ops kept in all,
in how many cases more and fewer than the default, evaluations, forwards and seconds. The samplers
are set against each other, and against no refinement at all, with equal numbers of evaluations
allowed. With ``--tight``, a thirtieth of the budget, every op's rounding counts. Cases in
``zoo.HELD_OUT`` and seeds other than 0 were never tuned on.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from mpsearch.strategies.greedy_optuna import GreedyOptuna, search

from benchmarks import zoo
from mpsearch.ending import Stop
from mpsearch.search import recording, registry, response
from mpsearch.search.cost import Casts
from mpsearch.search.exchanging import in_doubt
from mpsearch.search.problem import Problem
from mpsearch.search.question import Kept, Question
from mpsearch.search.record import BUDGET, FP32_OR_FP16, excess
from mpsearch.source.prepare import Prepared, prepare

#: What samplers of Optuna's own decide on: so many units kept, and so many others.
_DOUBTFUL = 16


def sampled(
    make: Callable[[int], optuna.samplers.BaseSampler],
) -> Callable[[GreedyOptuna, Problem, Kept], Kept]:
    """A refining pass with one of Optuna's own samplers.

    They need the same parameters in every trial: a study of its own holds the units in doubt, and
    is told of all that was tried and differs from the set so far in nothing else.
    """

    def refine(strategy: GreedyOptuna, problem: Problem, kept: Kept) -> Kept:
        inside, outside = in_doubt(problem, kept, _DOUBTFUL)
        doubtful = inside + outside
        if len(kept) < 2 or not doubtful:
            return kept
        fixed, question = kept.difference(doubtful), problem.question
        names = {unit: str(unit) for unit in doubtful}
        space = dict.fromkeys(names.values(), FP32_OR_FP16)
        study = optuna.create_study(sampler=make(question.seed))
        for tried in problem.record.trials:
            if tried.kept.difference(doubtful) == fixed:
                params = {name: unit in tried.kept for unit, name in names.items()}
                beyond = {BUDGET: excess(question, tried)}
                study.add_trial(
                    optuna.trial.create_trial(
                        params=params, distributions=space, value=tried.price, constraints=beyond
                    )
                )
        for _ in range(min(problem.remaining // 4, 4 * len(doubtful))):
            trial = study.ask(space)
            chosen = {unit for unit, name in names.items() if trial.params[name]}
            tried = problem.try_(fixed | chosen, "refine")
            trial.set_constraint(BUDGET, excess(question, tried))
            study.tell(trial, tried.price)
        return kept if problem.best is None else problem.best.kept

    return refine


def _tpe(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, multivariate=True)


def _gp(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.GPSampler(seed=seed, deterministic_objective=True)


def _random(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


@dataclass(frozen=True)
class Variant:
    """The strategy with one thing changed; ``constants`` are (module, name, value)."""

    strategy: GreedyOptuna = search
    constants: tuple[tuple[Any, str, Any], ...] = ()
    trials: int = 300

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        before = [(module, name, getattr(module, name)) for module, name, _ in self.constants]
        try:
            for module, name, value in self.constants:
                setattr(module, name, value)
            yield
        finally:
            for module, name, value in before:
                setattr(module, name, value)


def _with(**changes: Any) -> Variant:
    return Variant(replace(search, **changes))


def _constant(module: Any, name: str, value: Any) -> Variant:
    return Variant(constants=((module, name, value),))


VARIANTS: dict[str, Variant] = {
    "default": Variant(),
    "no refine": _with(refine=None),
    "no last prune": _with(last_prune=False),
    "no bound": _with(bound_per_unit=0.0, bound_trials=-1),
    "none but cast and prune": _with(refine=None, last_prune=False),
    "refine: TPE": _with(refine=sampled(_tpe)),
    "refine: GP": _with(refine=sampled(_gp)),
    "refine: random": _with(refine=sampled(_random)),
    "bound_per_unit 0.75": _with(bound_per_unit=0.75),
    "bound_per_unit 3": _with(bound_per_unit=3.0),
    "bound_trials 6": _with(bound_trials=6),
    "bound_trials 24": _with(bound_trials=24),
    "misses 12": _with(misses=12),
    "misses 24": _with(misses=24),
    "misses 96": _with(misses=96),
    "changing 12": _with(changing=12),
    "changing 48": _with(changing=48),
    "response _NONLINEAR 0.1": _constant(response, "_NONLINEAR", 0.1),
    "response _NONLINEAR 1": _constant(response, "_NONLINEAR", 1.0),
    "response _LEAST_EFFECT 0.03": _constant(response, "_LEAST_EFFECT", 0.03),
    "response _LEAST_EFFECT 0.3": _constant(response, "_LEAST_EFFECT", 0.3),
    "response _NEAR 8": _constant(response, "_NEAR", 8),
    "response _NEAR 32": _constant(response, "_NEAR", 32),
    "response _HEADS 8": _constant(response, "_HEADS", 8),
    "response _SKETCH 64": _constant(response, "_SKETCH", 64),
    "rounding DIRECTIONS 4": _constant(recording, "DIRECTIONS", 4),
    "rounding DIRECTIONS 16": _constant(recording, "DIRECTIONS", 16),
    "rounding SAMPLES 1": _constant(recording, "SAMPLES", 1),
    "rounding SAMPLES 4": _constant(recording, "SAMPLES", 4),
}
for _trials in (60, 120, 200):
    for _name in ("default", "no refine", "refine: TPE", "refine: GP", "refine: random"):
        VARIANTS[f"{_trials} evaluations, {_name}"] = replace(VARIANTS[_name], trials=_trials)


def measure(prepared: Prepared, limit: float, variant: Variant) -> dict[str, float] | None:
    """What a variant keeps on a case, and what that costs; None where nothing meets the limit."""
    started = time.perf_counter()
    question = Question.of_ops(prepared.ops, limit, Casts(prepared.lowered))
    problem = Problem(question, prepared.evaluator(), trials=variant.trials)
    with variant.applied():
        problem.admit(problem.everything)
        problem.admit(())
        if problem.best is None or problem.best.kept:
            with contextlib.suppress(Stop):
                registry.run(variant.strategy, problem)
    if problem.best is None:
        return None
    return {
        "kept": len(problem.best.kept),
        "casts": problem.question.rank(problem.best.kept)[2],
        "evaluations": len(problem.record.trials),
        "forwards": problem.engine.forward_equivalents,
        "seconds": time.perf_counter() - started,
    }


def table(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """``rows``: variant -> case and seed -> what was measured."""
    lines = [
        "| variant | FP32 ops | more in | fewer in | casts | evaluations | forwards | seconds |",
        "|---" * 8 + "|",
    ]
    for name, cells in rows.items():
        base = {k: rows["default"][k]["kept"] for k in cells}
        total: collections.Counter[str] = collections.Counter()
        for cell in cells.values():
            total.update(cell)
        more = sum(cell["kept"] > base[k] for k, cell in cells.items())
        fewer = sum(cell["kept"] < base[k] for k, cell in cells.items())
        lines.append(
            f"| {name} | {total['kept']:.0f} | {more} | {fewer} | {total['casts']:.0f} | "
            f"{total['evaluations']:.0f} | "
            f"{total['forwards']:.0f} | {total['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--half", choices=["held-out", "tuned", "all"], default="held-out")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--tight", action="store_true", help="A thirtieth of every budget.")
    parser.add_argument("--only", help="Variants whose name holds this pattern.")
    parser.add_argument("--json", type=Path, help="Also append every measurement to this file.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    variants = {
        k: v
        for k, v in VARIANTS.items()
        if not arguments.only or re.search(arguments.only, k) or k == "default"
    }
    rows: dict[str, dict[str, dict[str, float]]] = {name: {} for name in variants}
    for name, case in zoo.cases(arguments.cases).items():
        half = "held-out" if name in zoo.HELD_OUT else "tuned"
        if not arguments.cases and arguments.half not in ("all", half):
            continue
        for seed in arguments.seeds:
            model, samples = zoo.drawn(case, seed)
            numerics = zoo.numerics(case)
            prepared = prepare(model, samples, numerics=numerics, heldout=0.25)
            for label, variant in variants.items():
                limit = case.BUDGET / (30 if arguments.tight else 1)
                found = measure(prepared, limit, variant)
                if found is None:
                    break
                rows[label][f"{name}, seed {seed}"] = found
                if arguments.json:
                    with arguments.json.open("a") as file:
                        row = {"case": name, "seed": seed, "variant": label, **found}
                        file.write(json.dumps(row) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
