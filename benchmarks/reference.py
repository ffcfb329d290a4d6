"""What a long local search finds: the yardstick for ``greedy-optuna``.

python -m benchmarks.reference [--evaluations 20000] [--variants 1 2 3] [cases of the zoo ...]

Iterated local search on true evaluations, which knows nothing of rounding: cast ops in random
order, blocks first, as long as the budget holds; then, until the evaluations are used up, put a
few random ops back, cast in random order again, and keep what is not larger. Beside it, the
default strategy with its 300 evaluations. ``--variants`` runs EfficientViT at 3e-4 with weights of
other seeds instead of the zoo.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import zoo
from benchmarks.zoo import efficientvit_tight
from mpsearch.program.precision import Precision
from mpsearch.search import registry as search
from mpsearch.search.cost import Casts
from mpsearch.search.problem import Problem
from mpsearch.search.question import Question
from mpsearch.source.prepare import Prepared, prepare


class LocalSearch:
    """Sets of ops kept in FP32, each evaluated once."""

    def __init__(self, prepared: Prepared, budget: float, evaluations: int, seed: int = 0) -> None:
        self.evaluator = prepared.evaluator(cache_bytes=1 << 30)
        self.count = len(prepared.ops)
        self.budget = budget
        self.left = evaluations
        self.random = random.Random(seed)
        self.known: dict[frozenset[int], bool] = {}

    def meets(self, kept: frozenset[int]) -> bool:
        if kept not in self.known:
            self.left -= 1
            measured = self.evaluator.evaluate(Precision(kept, self.count), self.budget)
            self.known[kept] = measured.exact and measured.loss <= self.budget
        return self.known[kept]

    def cast(self, kept: frozenset[int]) -> frozenset[int]:
        """Cast ops in random order, blocks of halving size, until none can be."""
        size = max(len(kept) // 4, 1)
        while self.left > 0:
            order = sorted(kept)
            self.random.shuffle(order)
            for i in range(0, len(order), size):
                tried = kept.difference(order[i : i + size])
                if self.left > 0 and self.meets(tried):
                    kept = tried
            if size == 1:
                break
            size //= 2
        return kept

    def run(self) -> frozenset[int]:
        everything = frozenset(range(self.count))
        best = self.cast(everything)
        misses = 0
        # A set of which every neighbor is known asks for nothing new: stop after many of those.
        while self.left > 0 and misses < 2000:
            before = self.left
            outside = sorted(everything - best)
            if not outside:
                break
            added = self.random.sample(outside, min(self.random.randint(1, 4), len(outside)))
            found = self.cast(best.union(added))
            if len(found) <= len(best) and self.left >= 0:
                best = found
            misses = misses + 1 if self.left == before else 0
        return best


class Variant:
    """EfficientViT at a budget at which every op's rounding counts, with other weights."""

    BUDGET = efficientvit_tight.BUDGET
    samples = staticmethod(efficientvit_tight.samples)

    def __init__(self, seed: int) -> None:
        self.build = functools.partial(efficientvit_tight.build, seed=seed)


def compare(name: str, case: Any, evaluations: int) -> dict[str, Any]:
    numerics = zoo.numerics(case)
    prepared = prepare(case.build(), case.samples(), numerics=numerics, heldout=0.25)
    evaluator = prepared.evaluator(cache_bytes=1 << 30)
    question = Question.of_ops(prepared.ops, case.BUDGET, Casts(prepared.lowered))
    problem = Problem(question, evaluator)
    started = time.perf_counter()
    problem.admit(problem.everything)
    problem.admit(())
    search.run(search.find_strategy("greedy-optuna"), problem)
    row: dict[str, Any] = {
        "case": name,
        "ops": len(prepared.ops),
        "budget": case.BUDGET,
        "kept": len(problem.best.kept) if problem.best else None,
        "evaluations": len(problem.record.trials),
        "forwards": round(problem.engine.forward_equivalents, 1),
        "seconds": round(time.perf_counter() - started, 1),
    }
    del problem, evaluator
    started = time.perf_counter()
    local = LocalSearch(prepared, case.BUDGET, evaluations)
    row["reference"] = len(local.run())
    row["reference evaluations"] = evaluations - max(local.left, 0)
    row["reference seconds"] = round(time.perf_counter() - started, 1)
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--evaluations", type=int, default=20_000)
    parser.add_argument("--variants", type=int, nargs="*", help="Seeds of EfficientViT.")
    parser.add_argument("--json", type=Path, help="Also append every row to this file.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = ["case", "ops", "budget", "kept", "evaluations", "forwards", "seconds"]
    columns += ["reference", "reference evaluations", "reference seconds"]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    chosen = zoo.cases(arguments.cases)
    if arguments.variants:
        chosen = {f"efficientvit_tight, seed {s}": Variant(s) for s in arguments.variants}
    for name, case in chosen.items():
        row = compare(name, case, arguments.evaluations)
        print("| " + " | ".join(str(row[c]) for c in columns) + " |", flush=True)
        if arguments.json:
            with arguments.json.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
