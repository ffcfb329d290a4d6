"""What a time limit gives, and how far it is overrun.

    python -m benchmarks.timeouts --timeouts 1 5 20 --out benchmarks/timeouts.json

The limit starts when the model has been converted. What comes after it, one forward of one sample
aside, is writing: conversion of the chosen set, saving, reading back, and one run of what was read
on every sample. All are measured in the same run, by the stages that the progress bar names.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import mpsearch
import mpsearch.flows.optimize

from .models import named

CASES = {"vae-decoder": 1e-2, "vae-decoder-wide": 1e-2, "vit-12": 1e-3}
SAMPLES = 4


class Stages:
    """Seconds at which each stage of a run began, in the place of the progress bar."""

    began: dict[str, float] = {}

    def __init__(self, show: bool | None = None) -> None:
        Stages.began = {}

    def stage(self, text: str) -> None:
        Stages.began.setdefault(text, time.perf_counter())

    def trial(self, *_: Any) -> None:
        pass

    def close(self) -> None:
        Stages.began["end"] = time.perf_counter()


def measure(name: str, timeout: float | None) -> dict[str, Any]:
    """One run: what it kept, and where its time went."""
    model, first = named(name)
    generator = torch.Generator().manual_seed(1)
    samples = [torch.randn(first.shape, generator=generator) for _ in range(SAMPLES)]
    with torch.no_grad():
        model(first)
        started = time.perf_counter()
        model(first)
        forward = time.perf_counter() - started
    mpsearch.flows.optimize.Progress = Stages  # type: ignore[misc, assignment]
    result = mpsearch.optimize(model, samples, CASES[name], limits=mpsearch.Limits(timeout=timeout))
    began = Stages.began
    searched = began["measuring all-FP32 and all-FP16"]
    writing = began["writing the package and reading it back"]
    return {
        "case": name,
        "timeout": timeout,
        "status": result.status,
        "fp32_ops": len(result.fp32_ops),
        "candidate_ops": result.candidate_ops,
        "error": result.error,
        "heldout_error": result.heldout_error,
        "forward_s": forward,
        "search_s": writing - searched,
        "over_s": None if timeout is None else writing - searched - timeout,
        "writing_s": began["end"] - writing,
        "seconds": result.seconds,
        "not_measured": result.not_measured,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timeouts", type=float, nargs="*", default=[1.0, 5.0, 20.0])
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for case in options.cases:
        for timeout in [*options.timeouts, None]:
            row = measure(case, timeout)
            rows.append(row)
            limit = "none" if timeout is None else f"{timeout:g} s"
            over = "" if row["over_s"] is None else f", over by {row['over_s']:.2f} s"
            print(
                f"{case}, limit {limit}: {row['fp32_ops']} of {row['candidate_ops']} ops, error "
                f"{row['error']:.2g} (held out {row['heldout_error']:.2g}), search "
                f"{row['search_s']:.1f} s{over}, writing {row['writing_s']:.1f} s; one forward of "
                f"one sample {row['forward_s']:.2f} s; {row['status']}",
                flush=True,
            )
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
