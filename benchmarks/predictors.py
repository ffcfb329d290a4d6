"""Which numbers, had from a few samples, say how a set does on the next input?

python -m benchmarks.predictors [--seeds 0 1]

Sets that two searches keep (``objective="calibration"``, which looks for luck, and ``unseen``) on
small transformers at budgets where rounding alone decides. From the eight samples given each
predictor estimates the error that 95% of inputs stay below; 200 fresh inputs say what it is. The
first number is the mean of the logarithm of their ratio (below 0: too low), the second its mean
magnitude.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mpsearch
from benchmarks.models import Decoder, ViT
from mpsearch.program.precision import Precision
from mpsearch.source.prepare import Prepared, prepare

GIVEN, FRESH, AGAIN = 8, 200, 8
QUANTILE = 0.95


def model(kind: str, seed: int) -> tuple[torch.nn.Module, list[Tensor]]:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    count = GIVEN + FRESH
    if kind == "decoder":
        return Decoder(64, 4, 3, 24).eval(), [
            torch.randn(1, 24, 64, generator=generator) for _ in range(count)
        ]
    vit = ViT(64, 4, 4, 64, 8).eval()
    with torch.no_grad():
        for layer in vit.layers:
            layer.qkv.weight.mul_(3)
            layer.up.weight.mul_(2)
    return vit, [torch.randn(1, 3, 64, 64, generator=generator) for _ in range(count)]


def moved(samples: Sequence[Tensor], size: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        x * (1 + size * torch.randn(x.shape, generator=generator))
        for _ in range(AGAIN)
        for x in samples
    ]


def fit(losses: np.ndarray) -> float:
    """The quantile of the log-normal distribution with these losses' moments."""
    logs = np.log(losses)
    return math.exp(logs.mean() + 1.645 * logs.std(ddof=1))


def quantile(losses: np.ndarray) -> float:
    return float(np.quantile(losses, QUANTILE))


Predictor = Callable[[dict[str, np.ndarray]], float]
PREDICTORS: dict[str, Predictor] = {
    "worst of the samples": lambda found: float(found["samples"].max()),
    "fit to the samples": lambda found: fit(found["samples"]),
    "moved by 1e-5, quantile": lambda found: quantile(found["1e-05"]),
    "moved by 1e-5, fit": lambda found: fit(found["1e-05"]),
    "moved by 1%, fit": lambda found: fit(found["0.01"]),
    "moved by 10%, fit": lambda found: fit(found["0.1"]),
    "samples and moved by 1% and 10%, fit": lambda found: fit(
        np.concatenate([found["samples"], found["0.01"], found["0.1"]])
    ),
}


def losses(prepared: Prepared, names: set[str]) -> np.ndarray:
    kept = [op.index for op in prepared.ops if op.name in names]
    precision = Precision.of(kept, len(prepared.ops))
    count = len(prepared.calibration.samples)
    found = prepared.evaluator(cache_bytes=0).evaluate_together(precision, range(count))
    return np.array([evaluation.loss for evaluation in found])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    errors: dict[str, dict[str, list[float]]] = {name: {} for name in PREDICTORS}
    print(
        "| model, share of all FP16 | objective | FP32 ops | fresh inputs over |\n|---|---|---|---|"
    )
    for kind in ("vit", "decoder"):
        for seed in arguments.seeds:
            net, samples = model(kind, seed)
            given = prepare(net, samples[:GIVEN])
            fp16 = given.evaluator().loss(Precision.all_fp16(len(given.ops)))
            data: dict[str, Any] = {"samples": given, "fresh": prepare(net, samples[GIVEN:])}
            for size in (1e-5, 0.01, 0.1):
                data[f"{size:g}"] = prepare(net, moved(samples[:GIVEN], size))
            for share in (0.8, 0.5, 0.3):
                for objective in ("calibration", "unseen"):
                    wanted = mpsearch.Constraints(objective=objective)
                    result = mpsearch.optimize(
                        net, samples[:GIVEN], share * fp16, heldout=0.0, constraints=wanted
                    )
                    names = set(result.fp32_ops)
                    found = {key: losses(prepared, names) for key, prepared in data.items()}
                    over = np.mean(found["fresh"] > share * fp16)
                    print(f"| {kind} {seed}, {share} | {objective} | {len(names)} | {over:.0%} |")
                    for name, predictor in PREDICTORS.items():
                        ratio = math.log(predictor(found) / quantile(found["fresh"]))
                        errors[name].setdefault(objective, []).append(ratio)
    print("\n| predictor | calibration: mean, magnitude | unseen: mean, magnitude |\n|---|---|---|")
    for name, by_objective in errors.items():
        cells = [
            f"{np.mean(by_objective[o]):+.3f}, {np.mean(np.abs(by_objective[o])):.3f}"
            for o in ("calibration", "unseen")
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
