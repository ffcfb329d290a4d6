"""What holding on unseen inputs costs in FP32 ops, beside a long local search with the same aim.

python -m benchmarks.price [--evaluations 20000] [--samples 64 256] [cases of the zoo ...]

The local search (:mod:`benchmarks.reference`) is given 256 samples, none held out, and takes only
sets that lack no op that overflows or may, break the budget on no sample, and are not expected to
break it on the next one. Beside it, ``mpsearch.optimize`` with its defaults; and the share of fresh
inputs that break the budget of each.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import torch

import mpsearch
from benchmarks import zoo
from benchmarks.holds import inputs
from benchmarks.reference import LocalSearch
from mpsearch.evaluation.reach import Reach
from mpsearch.options import Constraints
from mpsearch.program.precision import Precision
from mpsearch.search.risk import Range
from mpsearch.source.prepare import Prepared, prepare

SAMPLES = 256


class Holding(LocalSearch):
    """Takes sets that hold, as far as the samples say."""

    def __init__(self, prepared: Prepared, budget: float, evaluations: int, seed: int = 0) -> None:
        self.evaluator = prepared.pool(chance=(1 - Constraints().coverage) / 10)
        self.count = len(prepared.ops)
        self.budget = budget
        self.left = evaluations
        self.random = random.Random(seed)
        self.known = {}
        reach = Reach(self.evaluator.backend)
        for _ in reach.run(range(SAMPLES)):
            pass
        self.required = Range(self.evaluator.backend, reach).refused
        self.order = list(range(SAMPLES))

    def meets(self, kept: frozenset[int]) -> bool:
        if not self.required <= kept:
            return False
        if kept not in self.known:
            self.left -= 1
            precision = Precision(kept, self.count)
            losses = self.evaluator.losses(
                precision, self.order, lambda seen: seen[-1] > self.budget
            )
            worst = max(losses, key=lambda s: losses[s])
            holds = losses[worst] <= self.budget
            if not holds:  # what broke the budget now is likeliest to break it for the next set
                self.order.remove(worst)
                self.order.insert(0, worst)
            else:
                holds = self.evaluator.expected(list(losses.values()), student=True) <= self.budget
            self.known[kept] = holds
        return self.known[kept]


def over(name: str, prepared: Prepared, kept: set[int], budget: float) -> float:
    """The share of fresh inputs on which a set breaks the budget."""
    precision = Precision.of(kept, len(prepared.ops))
    count = len(prepared.calibration.samples)
    losses = prepared.evaluator(cache_bytes=0).losses(precision, range(count)).values()
    return sum(loss > budget for loss in losses) / count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--evaluations", type=int, default=20_000)
    parser.add_argument("--samples", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    header = ["case", *(f"mpsearch, {n} samples" for n in arguments.samples), "local search"]
    print(f"| {' | '.join([*header, 'evaluations'])} |\n{'|---' * (len(header) + 1)}|")
    for name, case in zoo.cases(arguments.cases).items():
        numerics = zoo.numerics(case)
        model, budget, given, fresh = inputs(name, arguments.seed, SAMPLES, 500)
        judge = prepare(model, fresh, numerics=numerics)
        cells: list[Any] = []
        for count in arguments.samples:
            result = mpsearch.optimize(model, given[:count], budget, numerics=numerics)
            names = set(result.fp32_ops)
            kept = {op.index for op in judge.ops if op.name in names}
            cells.append(f"{len(kept)} ({over(name, judge, kept, budget):.1%} over)")
        local = Holding(prepare(model, given, numerics=numerics), budget, arguments.evaluations)
        found = set(local.run())
        cells.append(f"{len(found)} ({over(name, judge, found, budget):.1%} over)")
        cells.append(f"{arguments.evaluations - max(local.left, 0):,}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
