"""``ane`` and ``strict`` beside ``ieee``: single ops of real sizes, and whole models.

python -m benchmarks.profiles [names ...]

Each row runs in a process of its own, on one thread. Seconds are processor time, the least of three
rounds that run the profiles one after the other; memory is what the process takes at most beyond
what it has before. An op is typed FP16; its inputs are FP32 values, which it rounds on the way in.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.models import named
from mpsearch.evaluation.incremental import Incremental
from mpsearch.executor.ops import OPS
from mpsearch.numerics.formats import narrow
from mpsearch.numerics.profiles import PROFILES
from mpsearch.program.precision import Precision
from mpsearch.source.prepare import prepare
from tests.sweep.models import ARCHITECTURES

NAMES, ROUNDS = ("ieee", "ane", "strict"), 3
#: Of benchmarks/models.py, and of the sweep of options (tests/sweep/models.py).
MODELS = ("resnet-50", "decoder-6", "audio", "unet", "vae")


def _ops() -> dict[str, tuple[str, dict[str, Any]]]:
    def r(*shape: int) -> torch.Tensor:
        return torch.randn(shape)

    return {
        "linear 512 to 512, 197 rows": ("linear", {"x": r(1, 197, 512), "weight": r(512, 512)}),
        "linear 512 to 512, 1 row": ("linear", {"x": r(1, 512), "weight": r(512, 512)}),
        "conv 64 to 128, 3 x 3, 56 x 56": (
            "conv",
            {"x": r(1, 64, 56, 56), "weight": r(128, 64, 3, 3), "pad_type": "same"},
        ),
        "conv 258 to 64, 256 taps, 320 samples": (
            "conv",
            {"x": r(1, 258, 320), "weight": r(64, 258, 256)},
        ),
        "depthwise conv, 256 channels, 28 x 28": (
            "conv",
            {"x": r(1, 256, 28, 28), "weight": r(256, 1, 3, 3), "groups": 256, "pad_type": "same"},
        ),
        "conv_transpose 258 to 1, 256 taps by 64, 65 frames": (
            "conv_transpose",
            {"x": r(1, 258, 65), "weight": r(258, 1, 256), "strides": [64]},
        ),
        "conv_transpose 128 to 64, 3 x 3 by 2, 28 x 28": (
            "conv_transpose",
            {"x": r(1, 128, 28, 28), "weight": r(128, 64, 3, 3), "strides": [2, 2]},
        ),
        "matmul 12 x 197 x 64 x 197": ("matmul", {"x": r(1, 12, 197, 64), "y": r(1, 12, 64, 197)}),
        "softmax 12 x 197 x 197": ("softmax", {"x": r(1, 12, 197, 197), "axis": -1}),
        "layer_norm 197 x 768": ("layer_norm", {"x": r(1, 197, 768), "axes": [-1]}),
        "instance_norm 64 x 112 x 112": ("instance_norm", {"x": r(1, 64, 112, 112)}),
        "reduce_mean 64 x 56 x 56": ("reduce_mean", {"x": r(1, 64, 56, 56), "axes": [2, 3]}),
    }


def _op(name: str) -> dict[str, Callable[[], object]]:
    kind, given = _ops()[name]

    def run(profile: str) -> Callable[[], object]:
        def once() -> object:
            half = {k: narrow(v) for k, v in given.items()}
            return PROFILES[profile].run(kind, OPS[kind].function, half, ("fp16",), True)

        return once

    return {profile: run(profile) for profile in NAMES}


def _model(name: str) -> dict[str, Callable[[], object]]:
    if name in ARCHITECTURES:
        model = ARCHITECTURES[name].build(0)
        data = ARCHITECTURES[name].samples(0, 1)
    else:
        model, x = named(name)
        data = [x]
    prepared = prepare(model, data)
    fp16 = Precision.all_fp16(len(prepared.ops))

    def run(profile: str) -> Callable[[], object]:
        profiles = [PROFILES[profile]]
        samples = prepared.calibration.samples
        engine = Incremental(prepared.lowered, len(prepared.ops), samples, profiles, cache_bytes=0)
        return lambda: engine.outputs(fp16, 0, remember=False)

    return {profile: run(profile) for profile in NAMES}


def _row(name: str) -> str:
    torch.set_num_threads(1)
    runs = _op(name) if name in _ops() else _model(name)
    seconds, mib = dict.fromkeys(NAMES, float("inf")), {}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for profile, run in runs.items():
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                started = time.thread_time()
                run()
                seconds[profile] = min(seconds[profile], time.thread_time() - started)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                mib.setdefault(profile, (peak - before) / 1024)
    first = seconds["ieee"]
    cells = [f"{1000 * first:.3g}"]
    cells += [f"{seconds[profile] / first:.1f}" for profile in NAMES[1:]]
    cells += [f"{mib[profile]:.0f}" for profile in NAMES]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    names = parser.parse_args().names or [*_ops(), *MODELS]
    print("| | ieee (ms) | ane | strict | MiB: ieee | ane | strict |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.apply(_row, (name,)), flush=True)


if __name__ == "__main__":
    main()
