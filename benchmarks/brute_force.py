"""The search against brute force on random models with planted failures.

python -m benchmarks.brute_force [--count 200] [--seed 0] [--strategies NAME ...]

Brute force evaluates every set of ops kept in FP32, the smallest first, until one meets the budget.
Counts are compared on the six calibration samples. ``optimize`` then runs as users run it, with
four more samples held out; its sets are measured on those and on fresh samples that nobody saw.
Any range of seeds can be tried.
"""

from __future__ import annotations

import argparse
import collections
import itertools

import torch

import mpsearch
from mpsearch.flows.job import samples_of
from mpsearch.program.precision import Precision
from mpsearch.search import registry
from mpsearch.search.conflicts import lower_bound
from mpsearch.search.cost import Casts
from mpsearch.search.evaluations import Evaluations
from mpsearch.search.problem import Problem
from mpsearch.search.search import Search
from mpsearch.search.study import Study
from mpsearch.source.prepare import Prepared, prepare
from tests.planted import Planted, budget, samples

KNOWN = 6


def prepared(seed: int) -> Prepared:
    data = samples(seed, KNOWN + 4)
    return prepare(Planted(seed).eval(), data, heldout=0.4)


def optimum(model: Prepared, limit: float) -> int | None:
    """The fewest FP32 ops over all vectors, each evaluated from the smallest set on."""
    evaluator, count = model.evaluator(), len(model.ops)
    hardest = list(range(evaluator.samples))
    for size in range(count + 1):
        for fp32 in itertools.combinations(range(count), size):
            precision = Precision.of(fp32, count)
            broken = next(
                (s for s in hardest if evaluator.evaluate(precision, s).loss > limit), None
            )
            if broken is None:
                return size
            hardest.remove(broken)
            hardest.insert(0, broken)
    return None


def searched(model: Prepared, limit: float, strategy: str, seed: int) -> Search:
    problem = Problem.of_ops(model.ops, limit, Casts(model.lowered), seed)
    evaluator = model.evaluator()
    search = Search(problem, Evaluations(evaluator, Study()), samples_of(model, evaluator))
    search.judge_all_units()
    search.judge((), "ends")
    registry.run(registry.find_strategy(strategy), search)
    return search


def optimized(seed: int, limit: float, tally: collections.Counter[str]) -> None:
    """Run ``optimize`` as users do; what its result does on held-out and on fresh data."""
    model = Planted(seed).eval()
    result = mpsearch.optimize(model, samples(seed, KNOWN + 4), limit, heldout=0.4)
    tally["optimize: not met"] += not result.met
    if not result.met:
        return
    assert result.heldout_error is not None
    tally["optimize: budget broken"] += not result.error <= limit
    tally["optimize: held-out broken"] += not result.heldout_error <= limit
    fresh = prepare(model, samples(seed + 10**6, 40))
    kept = {op.index for op in fresh.ops if op.name in result.fp32_ops}
    loss = fresh.evaluator().loss(Precision.of(kept, len(fresh.ops)))
    tally["optimize: fresh data broken"] += not loss <= limit


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
    whole: collections.Counter[str] = collections.Counter()
    models = sizes = largest = optima = 0
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        model, limit = prepared(seed), budget(seed)
        best = optimum(model, limit)
        if best is None:
            continue
        models, sizes, optima = models + 1, sizes + len(model.ops), optima + best
        largest = max(largest, len(model.ops))
        optimized(seed, limit, whole)
        for strategy, tally in table.items():
            search = searched(model, limit, strategy, 0)
            assert search.best is not None
            found = search.best
            excess = len(found.fp32) - best
            tally["optimal"] += excess == 0
            tally["one above"] += excess == 1
            tally["more above"] += excess > 1
            tally["evaluations"] += search.evaluations.precisions
            other = searched(model, limit, strategy, 1).best
            tally["same count with another seed"] += other is not None and (
                len(other.fp32) == len(found.fp32)
            )
            loss = model.evaluator().loss(search.problem.precision(found.fp32))
            tally["budget broken"] += not loss <= limit
            bound = lower_bound(search)
            tally["bound claimed"] += bound is not None
            tally["bound above the optimum"] += bound is not None and bound > best
            tally["bound at the optimum"] += bound == best
    print(
        f"{models} models of {sizes / models:.1f} candidate ops on average, {largest} at most; "
        f"the optimum is {optima / models:.1f} on average\n"
    )
    columns = ["optimal", "one above", "more above", "same count with another seed"]
    columns += ["budget broken", "bound claimed", "bound at the optimum"]
    columns += ["bound above the optimum", "evaluations"]
    print("| strategy | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for strategy, tally in table.items():
        cells = [f"{100 * tally[c] / models:.1f}%" for c in columns[:-1]]
        print(f"| {strategy} | {' | '.join(cells)} | {tally['evaluations'] / models:.0f} |")
    print()
    for name in ("not met", "budget broken", "held-out broken", "fresh data broken"):
        print(f"optimize: {name} in {100 * whole[f'optimize: {name}'] / models:.1f}%")


if __name__ == "__main__":
    main()
