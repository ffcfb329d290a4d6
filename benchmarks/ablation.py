"""Does every pass and every constant of the search pay?

python -m benchmarks.ablation [--samples 16] [--only WORD] case ...

Each variant is the default strategy with one thing changed. The table gives, over all cases, the
FP32 ops found, in how many cases more and fewer than by the default, sets judged, op executions and
seconds. Cases are those of :mod:`benchmarks.price`.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from mpsearch.strategies.greedy_optuna import GreedyOptuna, search

from benchmarks.price import searching
from mpsearch.search import conflicts, registry, response, rounding_hooks


@contextlib.contextmanager
def changed(place: Any, **values: Any) -> Iterator[None]:
    """Constants of a module with other values."""
    before = {name: getattr(place, name) for name in values}
    try:
        for name, value in values.items():
            setattr(place, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(place, name, value)


Variant = tuple[GreedyOptuna, Callable[[], Any]]


def constant(place: Any, name: str, *values: Any) -> dict[str, Variant]:
    return {
        f"{name.strip('_').lower()} {value}": (search, lambda v=value: changed(place, **{name: v}))
        for value in values
    }


def variants() -> dict[str, Variant]:
    """The default first."""
    found: dict[str, Variant] = {"default": (search, contextlib.nullcontext)}
    for misses in (0, 8, 16, 64):
        found[f"misses {misses}"] = replace(search, misses=misses), contextlib.nullcontext
    for units in (8, 48):
        found[f"units {units}"] = replace(search, units=units), contextlib.nullcontext
    found |= constant(conflicts, "SMALL", 1, 2, 12)
    found |= constant(conflicts, "EXPLAINED", 1.0, 2.0, 6.0, 1e9)
    found |= constant(conflicts, "_LOWER", 0.5, 1.0)
    found |= constant(rounding_hooks, "DIRECTIONS", 2, 32)
    found |= constant(rounding_hooks, "SAMPLES", 1, 4)
    found |= constant(response, "_NONLINEAR", 0.1, 1.0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument(
        "--only", default="", help="variants whose name holds this, and the default"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    header = ["variant", "FP32 ops", "more in", "fewer in", "sets", "op executions", "seconds"]
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    default: dict[str, int] = {}
    for label, (strategy, context) in variants().items():
        if label != "default" and arguments.only not in label:
            continue
        counts, sets, executions, seconds = {}, 0, 0, 0.0
        for name in arguments.cases:
            with context():
                found = searching(name, 0, arguments.samples, 300)
                started = time.perf_counter()
                if not found.judge((), "ends").met:
                    registry.run(strategy, found)
                seconds += time.perf_counter() - started
            assert found.best is not None
            counts[name] = found.best.fp32_ops
            sets += found.evaluations.precisions
            executions += found.evaluations.evaluator.engine.executions
        default = default or counts
        more = sum(counts[name] > default[name] for name in counts)
        fewer = sum(counts[name] < default[name] for name in counts)
        cells = [label, sum(counts.values()), more, fewer, sets, f"{executions:,}"]
        print(f"| {' | '.join(map(str, cells))} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
