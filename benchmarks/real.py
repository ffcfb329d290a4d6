"""Models as people have them: ``mpsearch optimize`` beside plain ``ct.convert``.

python -m benchmarks.real [--full] [--budget 5e-3] [--held-out | --tuned] [architectures ...]

Each architecture of benchmarks/architectures.py is converted and searched in processes of their
own, one after the other: seconds and peak memory of ``torch.jit.trace`` and ``ct.convert`` to FP16,
and of ``mpsearch.optimize``. The time allowed is that of plain conversion, 60 forwards of all
samples in PyTorch and 10 s. ``--full`` makes them at their real size; without it they are narrow
and shallow. Those marked with a star are only measured, never tuned on.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import subprocess
import sys
import time
import warnings
from typing import Any

from benchmarks.architectures import ARCHITECTURES, HELD_OUT

#: The stages of the table's last column.
_SHOWN = ("conversion", "search", "writing", "held-out", "report")
#: Seconds that one architecture may take.
_LIMIT = 1800


def peak() -> float:
    """Peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def quiet() -> None:
    warnings.filterwarnings("ignore")
    for name in ("transformers", "diffusers", "coremltools", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)


class Stages(logging.Handler):
    """Seconds of each stage, as mpsearch's logger says when they begin."""

    #: By how a message begins; what follows the held-out data is for the report.
    NAMES = {
        "converting": "conversion",
        "measuring all-FP32": "search",
        "writing the package": "writing",
        "testing on held-out": "held-out",
    }

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.seconds: dict[str, float] = {}
        self._name, self._since = "", time.perf_counter()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.INFO:
            said = record.getMessage()
            found = (name for start, name in self.NAMES.items() if said.startswith(start))
            self.begin(next(found, "report" if self._name in ("held-out", "report") else "search"))

    def begin(self, name: str) -> None:
        now = time.perf_counter()
        if self._name:
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._since
        self._name, self._since = name, now


def plain(name: str, full: bool) -> dict[str, Any]:
    """A conversion as Apple's guide shows it, and forwards in PyTorch."""
    quiet()
    import coremltools as ct
    import numpy as np
    import torch

    from mpsearch.source.flat import flatten

    model, samples = ARCHITECTURES[name](full)
    names = list(samples[0])

    class Tuple(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(flatten(self.model(**dict(zip(names, tensors, strict=True)))).values())

    started, built = time.perf_counter(), peak()
    with torch.no_grad():
        for sample in samples:
            model(**sample)
    forwards = time.perf_counter() - started
    started = time.perf_counter()
    tensors = tuple(samples[0].values())
    kinds = [np.float32 if t.is_floating_point() else np.int32 for t in tensors]
    failed = ""
    try:
        with torch.no_grad():
            traced = torch.jit.trace(Tuple().eval(), tensors, strict=False, check_trace=False)
        inputs = [
            ct.TensorType(name=n, shape=tuple(t.shape), dtype=kind)
            for n, t, kind in zip(names, tensors, kinds, strict=True)
        ]
        ct.convert(
            traced,
            inputs=inputs,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
        )
    except Exception as error:
        failed = str(error).strip().splitlines()[0][:80]
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "parameters": parameters,
        "forwards": forwards,
        "seconds": time.perf_counter() - started,
        "peak": peak(),
        "built": built,
        "failed": failed,
    }


def searched(name: str, full: bool, budget: float) -> dict[str, Any]:
    quiet()
    import mpsearch

    stages = Stages()
    logger = logging.getLogger("mpsearch")
    logger.setLevel(logging.INFO)
    logger.addHandler(stages)
    model, samples = ARCHITECTURES[name](full)
    started = time.perf_counter()
    try:
        found = mpsearch.optimize(model, samples, budget)
    except mpsearch.MpsearchError as error:
        return {"failed": str(error)[:200], "seconds": time.perf_counter() - started}
    seconds = time.perf_counter() - started
    stages.begin("")
    if found.status == "infeasible":
        return {"failed": found.explanation[:200], "seconds": seconds}
    return {
        "failed": "",
        "seconds": seconds,
        "peak": peak(),
        "ops": found.candidate_ops,
        "kept": len(found.kept),
        "error": found.error,
        "error_fp16": found.error_fp16,
        "heldout": found.heldout_error,
        "met": found.met,
        "evaluations": found.evaluations,
        "stages": stages.seconds,
    }


def _apart(mode: str, name: str, full: bool, budget: float) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.real",
        "--one",
        mode,
        name,
        "--budget",
        str(budget),
    ]
    try:
        done = subprocess.run(
            command + ["--full"] * full, capture_output=True, text=True, timeout=_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {_LIMIT} s"}
    last = done.stdout.strip().splitlines()[-1:] or [""]
    if done.returncode or not last[0].startswith("{"):
        return {"failed": f"exit {done.returncode}: {done.stderr.strip()[-160:]}"}
    found: dict[str, Any] = json.loads(last[0])
    return found


def _row(name: str, a: dict[str, Any], b: dict[str, Any]) -> str:
    star = "*" if name in HELD_OUT else ""
    if "parameters" not in a:
        return f"| {name}{star} | {a['failed']} |" + " |" * 10
    head = f"| {name}{star} | {a['parameters'] / 1e6:.1f} M "
    first = a["failed"].replace("|", "/") or f"{a['seconds']:.1f} s, {a['peak'] / 1e9:.2f} GB"
    if b["failed"]:
        return head + f"| {first} | {b['failed']} |" + " |" * 8
    allowed = a["seconds"] + 60 * a["forwards"] + 10
    stages = " + ".join(f"{b['stages'].get(stage, 0):.0f}" for stage in _SHOWN)
    show = "inf" if b["error_fp16"] is None else f"{b['error_fp16']:.2g}"
    return head + (
        f"| {first} | {b['seconds']:.1f} s, {b['peak'] / 1e9:.2f} GB "
        f"| {b['seconds'] / allowed:.2f} | {b['peak'] / a['peak']:.2f} | {b['ops']} | {b['kept']} "
        f"| {show} | {b['error']:.2g} | {b['heldout']:.2g} | {'yes' if b['met'] else 'no'} "
        f"| {stages} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--budget", type=float, default=5e-3)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--one", choices=["plain", "searched"])
    given = parser.parse_args()
    if given.one == "plain":
        print(json.dumps(plain(given.names[0], given.full)))
        return
    if given.one == "searched":
        print(json.dumps(searched(given.names[0], given.full, given.budget)))
        return
    names = given.names or [
        name
        for name in ARCHITECTURES
        if not (given.held_out and name not in HELD_OUT) and not (given.tuned and name in HELD_OUT)
    ]
    print(
        "| architecture | parameters | plain conversion | optimize | of the time allowed "
        "| memory, to plain | ops | FP32 ops | all FP16 | error | held-out | met "
        "| seconds: conversion, search, writing, held-out, report |"
    )
    print("|---" * 13 + "|")
    for name in names:
        a = _apart("plain", name, given.full, given.budget)
        b = _apart("searched", name, given.full, given.budget)
        print(_row(name, a, b), flush=True)


if __name__ == "__main__":
    main()
