"""Does every constant of the search pay?

python -m benchmarks.ablation [--samples 16] [--fresh 200] [--only WORD] case ...

Each row is ``mpsearch.optimize`` with one constant changed: the FP32 ops of all cases, in how many
cases more and fewer than by default, the share of fresh inputs that break the budget and that are
lost (not finite, or ten times over it), op executions and seconds. Cases are those of
:mod:`benchmarks.holds`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from mpsearch.strategies import greedy_optuna

from benchmarks import holds
from mpsearch.evaluation import reach, sketch
from mpsearch.flows import job, validating
from mpsearch.search import conflicts, criterion, proposing, response, risk, rounding_hooks, search

#: Module, constant, other values than its own.
CONSTANTS: list[tuple[Any, str, tuple[Any, ...]]] = [
    (conflicts, "SMALL", (1, 2, 12)),
    (conflicts, "EXPLAINED", (1.0, 2.0, 6.0, 1e9)),
    (conflicts, "_LOWER", (0.5, 1.0)),
    (conflicts, "_MOST", (16.0, 1e9)),
    (conflicts, "_CLOSE", (1.005, 1.1)),
    (conflicts, "_USED", (0.7, 1.0)),
    (criterion, "_FAR", (3.0, 1e9)),
    (rounding_hooks, "DIRECTIONS", (2, 32)),
    (rounding_hooks, "SAMPLES", (1, 4)),
    (response, "_NONLINEAR", (0.1, 1.0)),
    (response, "_LEAST_EFFECT", (0.01, 1.0)),
    (response, "_NEAR", (4, 64)),
    (response, "_HEADS", (4, 96)),
    (sketch, "_BUCKETS", (64, 1024)),
    (proposing, "_OPS", (0.0, 1e-1)),
    (proposing, "_ROUNDING", (0.0, 1e-3)),
    (proposing, "_LEAST", (0.0, 1e-1)),
    (proposing, "_NODES", (50, 4000)),
    (search, "_APART", (1, 64)),
    (risk, "CHANCE", (1e-2, 1e-4)),
    (reach, "_PRIOR_SPREAD", (0.02, 0.5)),
    (reach, "_PRIOR_SAMPLES", (1, 10)),
    (reach, "_LEAST_SPREAD", (0.0, 0.1)),
    (reach, "_MOST", (2.0, 16.0)),
    (job, "_POOL", (16, 256)),
    (validating, "_RUINED", (0.05, 0.002)),
]
#: The same for what the strategy is made with.
STRATEGY = {"misses": (0, 8, 128), "units": (8, 96), "few_samples": (False,)}


Change = tuple[Any, str, Any]  # module, name, other value


def variants() -> Iterator[tuple[str, Change]]:
    """What is changed, in words and as such; first nothing."""
    strategy = greedy_optuna.search
    yield "default", (greedy_optuna, "search", strategy)
    for name, values in STRATEGY.items():
        for value in values:
            other = replace(strategy, **{name: value})
            label = f"{name} {value} ({getattr(strategy, name)})"
            yield label, (greedy_optuna, "search", other)
    for place, name, values in CONSTANTS:
        for value in values:
            where = place.__name__.rpartition(".")[2]
            yield f"{where}.{name} {value:g} ({getattr(place, name):g})", (place, name, value)


def measured(change: Change, *asked: Any) -> dict[str, Any]:
    """What a search gives with a constant changed."""
    place, name, value = change
    before = getattr(place, name)
    try:
        setattr(place, name, value)
        found = holds.searched(*asked)
    finally:
        setattr(place, name, before)
    return holds.judged(*asked, found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--fresh", type=int, default=200)
    parser.add_argument(
        "--only", default="", help="variants whose name holds this, and the default"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    header = ["variant", "FP32 ops", "more in", "fewer in", "over", "lost, most", "op executions"]
    header.append("seconds")
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    default: dict[str, int] = {}
    for label, change in variants():
        if label != "default" and arguments.only not in label:
            continue
        size = arguments.samples, arguments.fresh
        rows = {name: measured(change, name, 0, *size) for name in arguments.cases}
        counts = {name: row["kept"] for name, row in rows.items()}
        default = default or counts
        more = sum(counts[name] > default[name] for name in counts)
        fewer = sum(counts[name] < default[name] for name in counts)
        over = sum(row["over"] for row in rows.values()) / len(rows)
        lost = max(row["lost"] for row in rows.values())
        executions = sum(row["executions"] for row in rows.values())
        seconds = sum(row["seconds"] for row in rows.values())
        cells = [label, sum(counts.values()), more, fewer, f"{over:.1%}", f"{lost:.1%}"]
        cells += [f"{executions:,}", f"{seconds:.0f}"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
