"""What holding on unseen inputs costs in FP32 ops, beside a long local search with the same aim.

python -m benchmarks.price [--evaluations 20000] [--seconds 1800] [--samples 64 256] [cases ...]

The local search (:mod:`benchmarks.reference`) is given 256 samples, none held out, and the inputs
redrawn from them, and takes only sets that lack no op that overflows or may, break the budget on no
sample and on no more redrawn inputs than ``mpsearch`` lets them, and are not expected to break it
on the next one: what a set of ``mpsearch.optimize`` must do, by the same code. Beside it,
``mpsearch.optimize`` with its defaults, and with none of the 256 held out, as the local search has
them; and the share of fresh inputs that break the budget of each.
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any

import torch

import mpsearch
from benchmarks import zoo
from benchmarks.holds import inputs, numerics
from benchmarks.reference import LocalSearch
from mpsearch.evaluation.reach import Reach
from mpsearch.flows.job import pool_size
from mpsearch.options import Constraints
from mpsearch.program.precision import Precision
from mpsearch.search.risk import Range
from mpsearch.source.prepare import Prepared, prepare

SAMPLES = 256
#: How many samples are run at once.
_TOGETHER = 32


class Holding(LocalSearch):
    """Takes sets that hold, as far as the samples say."""

    def __init__(
        self,
        prepared: Prepared,
        budget: float,
        evaluations: int,
        seconds: float,
        seed: int = 0,
    ) -> None:
        self.evaluator = prepared.pool(chance=(1 - Constraints().coverage) / 10)
        self.count = len(prepared.ops)
        self.budget = budget
        self.left = evaluations
        self.until = time.monotonic() + seconds
        self.random = random.Random(seed)
        self.known = {}
        self.made = 0
        reach = Reach(self.evaluator.backend)
        for _ in reach.run(range(SAMPLES)):
            pass
        self.required = Range(self.evaluator.backend, reach).refused
        self.order = list(range(self.evaluator.backend.samples))

    def meets(self, kept: frozenset[int]) -> bool:
        if not self.required <= kept:
            return False
        if kept not in self.known:
            self.left = 0 if time.monotonic() > self.until else self.left - 1
            self.made += 1
            precision = Precision(kept, self.count)
            losses: dict[int, float] = {}
            broken: dict[int, float] = {}
            for start in range(0, len(self.order), _TOGETHER):
                losses |= self.evaluator.losses(precision, self.order[start : start + _TOGETHER])
                broken = {s: loss for s, loss in losses.items() if loss > self.budget}
                if not self.evaluator.may_break(broken):
                    break
            # What broke the budget now is likeliest to break it for the next set.
            self.order = [*broken, *(s for s in self.order if s not in broken)]
            predicted = self.evaluator.predicted([n for s, n in losses.items() if s not in broken])
            self.known[kept] = self.evaluator.may_break(broken) and predicted <= self.budget
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
    parser.add_argument("--seconds", type=float, default=1800.0, help="for one local search")
    parser.add_argument("--samples", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs: dict[str, tuple[int, Any]] = {f"{n} samples": (n, {}) for n in arguments.samples}
    runs[f"{SAMPLES}, none held out"] = SAMPLES, {"heldout": 0.0}
    header = ["case", *runs, "local search", "evaluations"]
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    for name in arguments.cases or zoo.cases():
        how = numerics(name)
        model, budget, given, fresh = inputs(name, arguments.seed, SAMPLES, 500)
        judge = prepare(model, fresh, numerics=how)
        cells: list[Any] = []
        for count, options in runs.values():
            result = mpsearch.optimize(model, given[:count], budget, numerics=how, **options)
            names = set(result.fp32_ops)
            kept = {op.index for op in judge.ops if op.name in names}
            cells.append(f"{len(kept)} ({over(name, judge, kept, budget):.1%} over)")
        prepared = prepare(model, given, numerics=how, redraw=pool_size)
        local = Holding(prepared, budget, arguments.evaluations, arguments.seconds)
        found = set(local.run())
        cells.append(f"{len(found)} ({over(name, judge, found, budget):.1%} over)")
        cells.append(f"{local.made:,}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
