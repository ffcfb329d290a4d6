"""32 samples at once beside one after the other.

python -m benchmarks.together [cases of the zoo ...]

Every other op in FP32, nothing remembered, the median of the ratios of five rounds; "loss" is the
largest relative difference that it makes to the loss of a sample.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from benchmarks import zoo
from mpsearch.program.precision import Precision
from mpsearch.source.prepare import prepare

COUNT, ROUNDS = 32, 5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| case | ops | largest result, one sample (kB) | one by one (ms) | times as fast | loss |"
    )
    print("|---|---|---|---|---|---|")
    for name, case in zoo.cases(arguments.cases).items():
        model, data = zoo.drawn(case, 0, COUNT)
        prepared = prepare(model, data[:COUNT], numerics=zoo.numerics(case).split(",")[0])
        evaluator = prepared.evaluator(cache_bytes=0)
        engine, metric, count = evaluator.engine, prepared.metric, len(prepared.ops)
        samples = range(engine.samples)
        precision = Precision.of(range(0, count, 2), count)
        list(
            engine.several(precision, samples)
        )  # the first one is run alone, to see how large it is
        ratios, alone = [], 0.0
        for _ in range(ROUNDS):
            started = time.perf_counter()
            single = [engine.outputs(precision, s, remember=False) for s in samples]
            alone = time.perf_counter() - started
            started = time.perf_counter()
            together = list(engine.several(precision, samples))
            ratios.append(alone / (time.perf_counter() - started))
        assert metric.parts is not None
        pairs = [
            [metric.parts(reference, out)[0] for out in outputs]
            for reference, *outputs in zip(prepared.references, single, together, strict=True)
        ]
        off = max(abs(a - b) / a if a and a < 1e30 else 0.0 for a, b in pairs)
        largest = max(4 * n for op in prepared.ops for n in map(_elements, op.output_shapes)) / 1000
        print(
            f"| {name} | {count} | {largest:.3g} | {1000 * alone:.0f} | "
            f"{statistics.median(ratios):.1f} | {off:.1g} |",
            flush=True,
        )


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


if __name__ == "__main__":
    main()
