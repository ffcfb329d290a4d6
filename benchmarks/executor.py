"""Executor against torch eager, side by side in one run at the same thread count.

python -m benchmarks.executor [--threads N] [--rounds N] [--recurrent | models ...]

Each round times eager, the executor in FP32, the executor in all-FP16 ``ieee`` and a cold
evaluation (an evaluator that remembers nothing yet) one after the other, so that all see the same
machine; the table gives the median of each round's ratio to eager.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import mpsearch
from benchmarks.models import named
from mpsearch.evaluation.evaluator import Evaluator
from mpsearch.evaluation.incremental import Incremental
from mpsearch.package.emission import convert, selector
from mpsearch.program.precision import Precision
from mpsearch.source.prepare import Prepared, prepare

MODELS = ["vit-12", "resnet-50", "decoder-6"]


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measure(name: str, rounds: int) -> dict[str, float]:
    model, x = named(name)
    prepared = prepare(model, x)
    names = [op.name for op in prepared.ops]
    (key,) = prepared.lowered.inputs
    feed = {key: x}
    fp32 = mpsearch.Executor(convert(prepared.precast, selector(names)))
    fp16 = mpsearch.Executor(convert(prepared.precast, selector([])))
    every = Precision.all_fp16(len(names))
    ready: list[tuple[Prepared, Evaluator[Incremental]]] = []

    def eager() -> None:
        with torch.inference_mode():
            model(x)

    def cold() -> None:
        ready[-1][1].evaluate(every)

    candidates = {
        "executor FP32": lambda: fp32.predict(feed),
        "executor FP16": lambda: fp16.predict(feed),
        "cold evaluation": cold,
    }
    ready.append((prepared, prepared.evaluator()))
    for function in (eager, *candidates.values()):
        function()
    ratios: dict[str, list[float]] = {k: [] for k in candidates}
    base = []
    for _ in range(rounds):
        once = seconds(eager)
        base.append(once)
        # As the search meets it: what was prepared is there, and nothing was evaluated yet.
        ready.clear()
        prepared = prepare(model, x)
        ready.append((prepared, prepared.evaluator()))
        for key_, function in candidates.items():
            ratios[key_].append(seconds(function) / once)
    return {"eager ms": 1000 * statistics.median(base)} | {
        k: statistics.median(v) for k, v in ratios.items()
    }


def measure_gru(steps: int, hidden: int, rounds: int) -> list[float]:
    """Milliseconds of torch's GRU, and the executor's ratio to it in FP32, ieee and ane."""
    torch.manual_seed(0)
    layer = torch.nn.GRU(hidden, hidden, batch_first=True).eval()
    x = torch.randn(1, steps, hidden)
    prepared = prepare(layer, x)
    (key,) = prepared.lowered.inputs
    fp32 = convert(prepared.precast, selector([op.name for op in prepared.ops]))
    fp16 = convert(prepared.precast, selector([]))
    executors = [mpsearch.Executor(fp32)]
    executors += [mpsearch.Executor(fp16, numerics=name) for name in ("ieee", "ane")]

    def eager() -> None:
        with torch.inference_mode():
            layer(x)

    def least(function: Callable[[], object]) -> float:
        function()
        taken = []
        for _ in range(rounds):
            started = time.thread_time()
            function()
            taken.append(time.thread_time() - started)
        return 1000 * min(taken)

    base = least(eager)
    return [base] + [least(lambda e=e: e.predict({key: x})) / base for e in executors]


def recurrent(rounds: int) -> None:
    """Print a row for each size of a GRU."""
    print("| steps x hidden | nn.GRU (ms) | executor FP32 | all-FP16 ieee | all-FP16 ane |")
    print("|---|---|---|---|---|")
    for steps, hidden in ((100, 128), (200, 256), (400, 512)):
        base, *ratios = measure_gru(steps, hidden, rounds)
        print(f"| {steps} x {hidden} | {base:.1f} | {' | '.join(f'{r:.1f}' for r in ratios)} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--recurrent", action="store_true", help="a GRU beside torch's own")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.recurrent:
        recurrent(arguments.rounds)
        return
    print("| model | eager (ms) | executor FP32 | executor all-FP16 | cold evaluation all-FP16 |")
    print("|---|---|---|---|---|")
    for name in arguments.models:
        row = measure(name, arguments.rounds)
        print(
            f"| {name} | {row['eager ms']:.0f} | {row['executor FP32']:.2f} | "
            f"{row['executor FP16']:.2f} | {row['cold evaluation']:.2f} |"
        )


if __name__ == "__main__":
    main()
