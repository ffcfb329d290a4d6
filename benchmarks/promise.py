"""Is the promise true? Planted models, each with few samples, judged by many that nobody saw.

python -m benchmarks.promise [--models 300] [--samples 64] [--fresh 2000]

Counts for how many models the coverage that the result states is there on fresh inputs, and how
much was stated.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import torch

import mpsearch
from mpsearch.program.precision import Precision
from mpsearch.source.prepare import prepare
from tests.planted import KINDS, Planted, budget


def inputs(seed: int, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 6, generator=generator) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=int, default=300)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--fresh", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stated, true, kept, covered = [], 0, [], []
    for seed in range(arguments.models):
        given = inputs(seed, arguments.samples)
        result = mpsearch.optimize(Planted(seed), given, budget(seed))
        unseen = inputs(100_000 + seed, arguments.fresh)
        prepared = prepare(Planted(seed), unseen)
        names = set(result.fp32_ops)
        ops = [op.index for op in prepared.ops if op.name in names]
        evaluator = prepared.evaluator(cache_bytes=0)
        precision = Precision.of(ops, len(prepared.ops))
        losses = [e.loss for e in evaluator.evaluate_together(precision, range(len(unseen)))]
        covered.append(float(np.mean([loss <= budget(seed) for loss in losses])))
        kept.append(len(ops))
        stated.append(result.coverage or 0.0)
        true += covered[-1] >= stated[-1]
        if covered[-1] < stated[-1]:
            kind = KINDS[seed % len(KINDS)]
            print(f"seed {seed} ({kind}): stated {stated[-1]:.3f}, there {covered[-1]:.3f}")
    print(
        f"{true} of {len(stated)} promises true; stated: median {statistics.median(stated):.3f}, "
        f"above 0.85 in {np.mean([s > 0.85 for s in stated]):.0%}; there: median "
        f"{statistics.median(covered):.4f}, least {min(covered):.4f}; FP32 ops in all {sum(kept)}"
    )


if __name__ == "__main__":
    main()
