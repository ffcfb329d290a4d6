"""Error measures, written apart from mpsearch's, and how a package does by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax
from torch import Tensor

import mpsearch
from mpsearch.options import IN_DB, METRICS

from . import models
from .draw import Run
from .models import Sample
from .sources import Predict, batched

Outputs = list[np.ndarray]

#: How far apart two sums of the same numbers may be.
SLACK = 1e-6


def _over_outputs(measure: Any) -> Any:
    """The worst over the outputs of one sample."""

    def worst(references: Outputs, outputs: Outputs) -> float:
        found = []
        for r, o in zip(references, outputs, strict=True):
            if not np.isfinite(o).all():
                return math.inf
            found.append(measure(r.astype("f8"), o.astype("f8").reshape(r.shape)))
        return max(found)

    return worst


def _ratio(over: float, under: float) -> float:
    return over / under if under else (math.inf if over else 0.0)


def _decibels(signal: float, noise: float) -> float:
    return -10 * math.log10(signal / noise) if noise else -math.inf


def _kl(r: np.ndarray, o: np.ndarray) -> float:
    p, q = log_softmax(r, -1), log_softmax(o, -1)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


_BY_SAMPLE = {
    "rel_l2": lambda r, o: _ratio(np.linalg.norm(o - r), np.linalg.norm(r)),
    "max_abs": lambda r, o: abs(o - r).max(),
    "mean_abs": lambda r, o: abs(o - r).mean(),
    "cosine": lambda r, o: (
        1 - _ratio(float((r * o).sum()), float(np.linalg.norm(r) * np.linalg.norm(o)))
    ),
    "psnr": lambda r, o: _decibels(float(abs(r).max()) ** 2, float(((o - r) ** 2).mean())),
    "snr": lambda r, o: _decibels(float((r**2).sum()), float(((o - r) ** 2).sum())),
    "kl": _kl,
}


def loss(metric: str, references: Sequence[Outputs], outputs: Sequence[Outputs]) -> float:
    """The loss over the samples, smaller is better: a value in dB with the other sign."""
    pairs = list(zip(references, outputs, strict=True))
    if metric == "top1":
        decisions = [(r[0].argmax(-1), o[0].reshape(r[0].shape).argmax(-1)) for r, o in pairs]
        return sum((a != b).sum() for a, b in decisions) / sum(a.size for a, _ in decisions)
    if metric == "worst":
        return max(
            models.worst(dict(enumerate(r)), dict(enumerate(o)))  # type: ignore[arg-type]
            if all(np.isfinite(x).all() for x in o)
            else math.inf
            for r, o in pairs
        )
    if metric == "agreement":
        targets = models.targets(len(pairs))
        named = ([{"0": x[0]} for x in some] for some in (references, outputs))
        drop = models.agreement(next(named), targets) - models.agreement(next(named), targets)
        return max(0.0, drop) if not math.isnan(drop) else math.inf
    return max(_over_outputs(_BY_SAMPLE[metric])(r, o) for r, o in pairs)


def budget(run: Run, references: Sequence[Outputs]) -> float:
    """The budget of a run in its metric's own terms."""
    metric, relative = run.get("metric", "rel_l2"), run.budget
    if metric in ("max_abs", "mean_abs"):
        return relative * max(float(abs(x).max()) for r in references for x in r)
    if metric in IN_DB:
        return -20 * math.log10(relative)
    if metric in ("cosine", "kl"):
        return relative**2
    own = metric not in METRICS  # a function, or a name that is wrong on purpose
    assert own or metric in ("rel_l2", "top1"), f"a budget for {metric} is missing here"
    return relative


def limit(run: Run, budget: float) -> float:
    """The largest loss that a budget allows, with slack."""
    limit = -budget if run.get("metric") in IN_DB else budget
    return limit + SLACK * max(abs(limit), 1e-4)


def arrays(values: Sequence[Tensor]) -> Outputs:
    """Tensors as arrays."""
    return [v.detach().float().numpy() for v in values]


def shaped(package: str | Path, run: Run, samples: list[Sample]) -> list[Sample]:
    """The samples as a package takes them: batches apart, or as they were given."""
    if run.form not in ("batch", "loader"):
        return samples
    declared = next(iter(_description(package).input)).type.multiArrayType
    if declared.shape[0] == 1 and not declared.shapeRange.sizeRanges:
        return samples
    step = len(samples) if run.form == "batch" else 2
    return [batched(samples[i : i + step]) for i in range(0, len(samples), step)]


def calibration(run: Run, samples: list[Sample]) -> list[Sample]:
    """The samples that are searched on; the others, spread among them, are held out."""
    count, share = len(samples), run.get("heldout", 0.3)
    held = min(count - 1, max(1, round(count * share))) if count > 1 and share else 0
    apart = {(place + 1) * count // held - 1 for place in range(held)}
    return [sample for place, sample in enumerate(samples) if place not in apart]


def outputs(package: str | Path, profile: str, samples: Sequence[Sample]) -> list[Outputs]:
    """What a package gives for samples, by their order, one by one."""
    executor = mpsearch.Executor(str(package), profile)
    names = [feature.name for feature in _description(package).input]
    stateful = len(_description(package).state) > 0
    found = []
    for sample in samples:
        data = dict(zip(names, (v.numpy() for v in sample.values()), strict=True))
        out = executor.predict(data, executor.make_state() if stateful else None)
        found.append([np.asarray(v) for v in out.values()])
    return found


def error(package: str | Path, run: Run, predict: Predict, samples: Sequence[Sample]) -> float:
    """The loss of a package, in the worst of a run's profiles."""
    references = [arrays(predict(sample)) for sample in samples]
    return max(
        loss(run.get("metric", "rel_l2"), references, outputs(package, profile, samples))
        for profile in run.get("numerics", "ieee").split(",")
    )


def _description(package: str | Path) -> Any:
    import coremltools as ct

    return ct.utils.load_spec(str(package)).description


def same(a: torch.nn.Module, b: dict[str, Tensor]) -> bool:
    """Whether a module's tensors are these, to the bit."""
    now = a.state_dict()
    return now.keys() == b.keys() and all(
        torch.equal(now[k].contiguous().view(torch.uint8), b[k].contiguous().view(torch.uint8))
        for k in b
        if now[k].dim()
    )
