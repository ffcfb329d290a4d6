"""All strategies side by side on the examples, each on an evaluator of its own.

python -m benchmarks.strategies [models ...]

Ops kept in FP32, evaluations and forward-equivalents (measured op time over one forward of all
calibration samples), on the calibration data, with 300 trials.
"""

from __future__ import annotations

import argparse
import importlib
import time
from importlib.metadata import entry_points

import torch

from mpsearch import search
from mpsearch.prepare import prepare
from mpsearch.problem import Problem

MODELS = ["complex_division", "stylegan2", "llama", "efficientvit", "minilm"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=MODELS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = sorted(e.name for e in entry_points(group=search.GROUP) if e.name != "exhaustive")
    print("| model (ops, budget) | " + " | ".join(names) + " | at least |")
    print("|---" * (len(names) + 2) + "|")
    for name in arguments.models:
        module = importlib.import_module(f"examples.{name}")
        prepared = prepare(module.build(), module.samples(), "rel_l2", "ieee", "iOS17", 0.25, None)
        cells, bound = [], None
        for strategy in names:
            units = search.units(prepared.ops, range(len(prepared.ops)), "op")
            evaluator = prepared.evaluator()
            problem = Problem(units, prepared.ops, module.BUDGET, evaluator)
            started = time.perf_counter()
            problem.admit(problem.everything)
            problem.admit(())
            search.run(search.find_strategy(strategy), problem)
            seconds = time.perf_counter() - started
            assert problem.best is not None
            cells.append(
                f"{len(problem.best.kept)} ({len(problem.history)}, "
                f"{evaluator.forward_equivalents:.0f}, {seconds:.0f} s)"
            )
            if strategy == "greedy-optuna":
                problem.extend(200)
                bound = problem.lower_bound()
        label = f"{name} ({len(prepared.ops)}, {module.BUDGET:g})"
        print(f"| {label} | {' | '.join(cells)} | {'-' if bound is None else bound} |", flush=True)


if __name__ == "__main__":
    main()
