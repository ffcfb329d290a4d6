"""The search against brute force on random models with planted failures.

python -m benchmarks.brute_force [--count 200] [--seed 0] [--strategies NAME ...]

Brute force evaluates every set of ops kept in FP32, the smallest first, until one meets the budget.
The samples after the first six are held out, and seen by neither.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import math

import torch

from mpsearch import search
from mpsearch.prepare import Prepared, prepare
from mpsearch.problem import Problem
from tests.planted import Planted, budget, samples

KNOWN = 6


def prepared(seed: int) -> Prepared:
    data = samples(seed, KNOWN + 4)
    return prepare(Planted(seed).eval(), data, "rel_l2", "ieee", "iOS17", 0.4, None)


def optimum(model: Prepared, limit: float) -> int | None:
    """The fewest FP32 ops over all vectors, each evaluated from the smallest set on."""
    evaluator, count = model.evaluator(), len(model.ops)
    for size in range(count + 1):
        for kept in itertools.combinations(range(count), size):
            vector = tuple(i in kept for i in range(count))
            if evaluator.evaluate(vector, limit).loss <= limit:
                return size
    return None


def searched(model: Prepared, limit: float, strategy: str, seed: int) -> Problem:
    units = search.units(model.ops, range(len(model.ops)), "op")
    problem = Problem(units, model.ops, limit, model.evaluator(), seed=seed)
    problem.admit(problem.everything)
    problem.admit(())
    search.run(search.find_strategy(strategy), problem)
    return problem


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strategies", nargs="*", default=["greedy-optuna"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table: dict[str, collections.Counter[str]] = {
        s: collections.Counter() for s in arguments.strategies
    }
    models = sizes = 0
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        model, limit = prepared(seed), budget(seed)
        best = optimum(model, limit)
        if best is None:
            continue
        models, sizes = models + 1, sizes + len(model.ops)
        for strategy, tally in table.items():
            problem = searched(model, limit, strategy, 0)
            assert problem.best is not None
            excess = len(problem.best.kept) - best
            tally["optimal"] += excess == 0
            tally["one above"] += excess == 1
            tally["more above"] += excess > 1
            tally["evaluations"] += len(problem.history)
            other = searched(model, limit, strategy, 1).best
            tally["same count with another seed"] += other is not None and (
                len(other.kept) == len(problem.best.kept)
            )
            evaluator = model.evaluator()
            loss = evaluator.evaluate(problem.vector(problem.best.kept)).loss
            tally["budget broken"] += not loss <= limit
            tally["held-out broken"] += _heldout(model, problem) > limit
    print(f"{models} models, {sizes / models:.1f} candidate ops on average\n")
    columns = ["optimal", "one above", "more above", "same count with another seed"]
    columns += ["budget broken", "held-out broken", "evaluations"]
    print("| strategy | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for strategy, tally in table.items():
        cells = [f"{100 * tally[c] / models:.1f}%" for c in columns[:-1]]
        print(f"| {strategy} | {' | '.join(cells)} | {tally['evaluations'] / models:.0f} |")


def _heldout(model: Prepared, problem: Problem) -> float:
    from dataclasses import replace

    other = replace(model, calibration=model.heldout, references=model.heldout_references)
    assert problem.best is not None
    loss = other.evaluator().evaluate(problem.vector(problem.best.kept)).loss
    return loss if not math.isnan(loss) else math.inf


if __name__ == "__main__":
    main()
