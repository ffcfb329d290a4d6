"""How the search grows: decoders of 100 to 2,000 and more ops with the same three culprits.

python -m benchmarks.growth [--layers 5 10 20 40 80 100] [--plot growth.svg]

Each decoder has three squares that overflow, at a quarter, a half and three quarters of its depth.
Every size runs in a process of its own, so that its peak memory is its own; the peak of one eager
forward is measured in the same way. The exponent is the slope of a straight line through the
logarithms.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.models import Decoder

CACHE_BYTES = 128 << 20
BUDGET = 1e-2


class Overflowing(torch.nn.Module):
    """A layer, and then a root of squares of values in the hundreds."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        y = 300.0 * self.layer(x, mask)
        return torch.sqrt(y * y + 1.0) / 300.0


def decoder(layers: int) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    torch.manual_seed(0)
    model = Decoder(width=256, heads=4, layers=layers, length=32)
    for share in (0.25, 0.5, 0.75):
        place = int(share * layers)
        model.layers[place] = Overflowing(model.layers[place])
    return model.eval(), [torch.randn(1, 32, 256) for _ in range(8)]


def one(layers: int, eager: bool, budget: float) -> dict[str, Any]:
    """One size in this process."""
    import mpsearch  # before memory is measured, with eager as well

    torch.set_num_threads(1)
    process = psutil.Process()
    before = process.memory_info().rss
    model, samples = decoder(layers)
    if eager:
        with torch.inference_mode():
            model(samples[0])
        return {"bytes": _peak() - before}
    started = time.perf_counter()
    result = mpsearch.optimize(
        model, samples, budget, execution=mpsearch.Execution(cache_bytes=CACHE_BYTES)
    )
    seconds = time.perf_counter() - started
    study = result.study
    # Trials that a sampler asked for span what it took to ask, to evaluate and to tell.
    asked = [t for t in study.trials if t.params]
    spans = sum((t.datetime_complete - t.datetime_start).total_seconds() for t in asked)
    own = sum(t.user_attrs["seconds"] for t in asked if "seconds" in t.user_attrs)
    return {
        "ops": result.candidate_ops,
        "kept": len(result.fp32_ops),
        "bound": result.lower_bound,
        "evaluations": result.evaluations,
        "forwards": result.forward_equivalents,
        "seconds": seconds,
        "optuna": max(spans - own, 0.0),
        "bytes": _peak() - before,
    }


def _peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_a_process(layers: int, eager: bool, budget: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.growth", "--one", str(layers)]
    command += ["--budget", str(budget)]
    done = subprocess.run(command + ["--eager"] * eager, check=True, capture_output=True, text=True)
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, nargs="*", default=[5, 10, 20, 40, 80, 120])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--budget", type=float, default=BUDGET)
    parser.add_argument("--one", type=int)
    parser.add_argument("--eager", action="store_true")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one, arguments.eager, arguments.budget)))
        return
    print(
        "| ops | kept | at least | evaluations | forward-equivalents | seconds | Optuna's own | "
        "peak (MiB) | eager (MiB) |"
    )
    print("|---" * 9 + "|")
    rows = []
    for layers in arguments.layers:
        row = in_a_process(layers, False, arguments.budget)
        row["eager"] = in_a_process(layers, True, arguments.budget)["bytes"]
        rows.append(row)
        print(
            f"| {row['ops']} | {row['kept']} | {row['bound']} | {row['evaluations']} | "
            f"{row['forwards']:.1f} | {row['seconds']:.1f} | {row['optuna']:.2f} s | "
            f"{row['bytes'] >> 20} | {row['eager'] >> 20} |",
            flush=True,
        )
    if len(rows) < 2:
        return
    slope = _slope([r["ops"] for r in rows], [r["forwards"] for r in rows])
    print(f"\nforward-equivalents grow as n^{slope:.2f}")
    if arguments.plot:
        _plot(rows, slope, arguments.plot)


def _slope(x: list[float], y: list[float]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _plot(rows: list[dict[str, Any]], slope: float, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    ops = [r["ops"] for r in rows]
    axes.loglog(ops, [r["forwards"] for r in rows], "o-", label=f"measured, n^{slope:.2f}")
    limit = rows[0]["forwards"] * (np.array(ops) / ops[0]) ** 0.35
    axes.loglog(ops, limit, "--", color="grey", label="n^0.35")
    axes.set_xlabel("candidate ops")
    axes.set_ylabel("forward-equivalents to the result")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
