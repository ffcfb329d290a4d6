"""Corrupted files of every kind that is read: no traceback, no hang, no more memory than 4 GiB.

    python -m tests.trials.corrupt --count 5000 --seed 0

A corrupted file may still be a good one; then the command may succeed. What it must not do is end
in anything but its documented exit codes, print more than a line of error, or write what is broken.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from . import files
from .harness import Outcome, corrupted, run

MODEL, DATA = "tests.models:net", "tests.models:batches"
_SEARCH = ["--budget", "1e-2", "--trials", "20", "-o", "out"]
_SPEC = "Data/com.apple.CoreML"
#: Kind of file -> its place in the folder, and the command that reads it.
KINDS: dict[str, tuple[str, list[str]]] = {
    "script": ("script.pt", ["optimize", "script.pt", "--inputs", "x.npz", *_SEARCH]),
    "exported": ("exported.pt2", ["optimize", "exported.pt2", "--inputs", "x.npz", *_SEARCH]),
    "pickled": ("pickled.pt", ["analyze", "pickled.pt", "--inputs", "x.npz"]),
    "state": ("state.pt", ["check", "result", MODEL, "--weights", "state.pt", "--inputs", DATA]),
    "safetensors": (
        "state.safetensors",
        ["check", "result", MODEL, "--weights", "state.safetensors", "--inputs", DATA],
    ),
    "npz": ("x.npz", ["check", "result", MODEL, "--inputs", "x.npz"]),
    "run": ("one.npz", ["run", "fp32.mlpackage", "--inputs", "one.npz", "-o", "y.npz"]),
    "pt": ("x.pt", ["check", "result", MODEL, "--inputs", "x.pt"]),
    "data": ("x.safetensors", ["check", "result", MODEL, "--inputs", "x.safetensors"]),
    "spec": (
        f"fp32.mlpackage/{_SPEC}/model.mlmodel",
        ["run", "fp32.mlpackage", "--inputs", "one.npz", "-o", "y.npz"],
    ),
    "searched": (
        f"fp32.mlpackage/{_SPEC}/model.mlmodel",
        ["optimize", "fp32.mlpackage", "--inputs", "x.npz", *_SEARCH],
    ),
    "weights": (
        f"wide.mlpackage/{_SPEC}/weights/weight.bin",
        ["run", "wide.mlpackage", "--inputs", "wide.npz", "-o", "y.npz"],
    ),
    "manifest": (
        "fp32.mlpackage/Manifest.json",
        ["run", "fp32.mlpackage", "--inputs", "one.npz", "-o", "y.npz"],
    ),
    "config": ("result/precision.json", ["check", "result", MODEL, "--inputs", DATA]),
    "applied": ("result/precision.json", ["apply", "result", MODEL, "-o", "a.mlpackage"]),
    "result": ("result/result.json", ["report", "result"]),
    "outputs": ("result/manifest.json", ["report", "result"]),
}
_LIMIT, _MEMORY = 30.0, 4 << 30


@dataclass(frozen=True)
class Trial:
    """One corrupted file: its kind, what the command made of it, and what is wrong with that."""

    kind: str
    outcome: Outcome
    wrong: str | None


def make(folder: Path) -> None:
    """Good files of every kind."""
    import coremltools as ct
    import numpy as np
    import torch

    from mpsearch._ct import quiet

    files.make_good(folder)
    torch.manual_seed(0)
    wide = torch.nn.Linear(64, 64).eval()
    with quiet():
        ct.convert(
            torch.jit.trace(wide, torch.zeros(1, 64)),
            inputs=[ct.TensorType("x", (1, 64))],
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
        ).save(str(folder / "wide.mlpackage"))
    np.savez(folder / "wide.npz", x=np.ones((1, 64), np.float32))


def trial(good: Path, kind: str, generator: random.Random) -> Trial:
    """Corrupt one file in a copy of the folder, and run its command there."""
    with tempfile.TemporaryDirectory(prefix="trial-") as scratch:
        here, tmp = Path(scratch) / "here", Path(scratch) / "tmp"
        tmp.mkdir()
        shutil.copytree(good, here)
        name, argv = KINDS[kind]
        file = here / name
        file.write_bytes(corrupted(file.read_bytes(), generator))
        outcome = run(argv, here, tmp, _LIMIT)
    return Trial(kind, outcome, judged(outcome))


def judged(outcome: Outcome) -> str | None:
    """What is wrong with an outcome; None where nothing is."""
    lines = outcome.stderr.splitlines()
    if outcome.seconds > _LIMIT:
        return f"{outcome.seconds:.0f} s"
    if outcome.code not in (0, 1, 2, 3, 130):
        return f"exit code {outcome.code}: {outcome.stderr[-300:]}"
    if any(line.startswith("Traceback") for line in lines) or "defect: " in outcome.stderr:
        return outcome.stderr[-300:]
    if outcome.code == 2 and (len(lines) != 1 or not lines[0].startswith("error: ")):
        return f"{len(lines)} lines: {outcome.stderr[-300:]}"
    if outcome.peak > _MEMORY:
        return f"{outcome.peak / 2**30:.1f} GiB"
    return f"left in TMPDIR: {outcome.litter}" if outcome.litter else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="corrupt-") as folder:
        good = Path(folder)
        make(good)
        codes: Counter[tuple[str, int]] = Counter()
        wrong, slowest, peak = 0, 0.0, 0
        for i in range(options.count):
            kind = list(KINDS)[i % len(KINDS)]
            found = trial(good, kind, random.Random(f"{options.seed}/{i}"))
            codes[kind, found.outcome.code] += 1
            slowest = max(slowest, found.outcome.seconds)
            peak = max(peak, found.outcome.peak)
            if found.wrong is not None:
                wrong += 1
                print(f"{i} {kind}: {found.wrong}")
    for (kind, code), count in sorted(codes.items()):
        print(f"  {kind:12} exit {code}: {count}")
    print(f"{options.count} files, {wrong} wrong; slowest {slowest:.1f} s, {peak / 2**30:.2f} GiB")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
