"""Names a search by what it is about: model, data, metric, numerics, versions."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import xxhash

from .prepare import Prepared

#: The packages on which a result depends.
PACKAGES = ("mpsearch", "coremltools", "torch", "numpy", "optuna")


def versions() -> dict[str, str]:
    """The versions of the packages on which a result depends."""
    return {name: version(name) for name in PACKAGES}


def data_digest(prepared: Prepared) -> str:
    """What tells data from other data: a digest of all samples and targets."""
    digest = xxhash.xxh3_128()
    for sample in (*prepared.calibration.samples, *prepared.heldout.samples):
        for name, value in sample.items():
            digest.update(name.encode())
            digest.update(_bytes(value))
    for target in (*prepared.calibration.targets, *prepared.heldout.targets):
        digest.update(_bytes(target))
    return digest.hexdigest()


def study_name(prepared: Prepared, data: str) -> str:
    """The name of the study of a search: the same for the same model, data, metric and versions.

    ``data`` is the :func:`data_digest`.
    Two runs with the same name evaluate alike; they may differ in budget, strategy and limits.
    """
    digest = xxhash.xxh3_128()
    digest.update(prepared.fingerprint.encode())
    digest.update(data.encode())
    profiles = [p.identity for p in prepared.profiles]
    digest.update(repr((prepared.metric.name, profiles, sorted(versions().items()))).encode())
    return f"{prepared.source} {digest.hexdigest()[:16]}"


def _bytes(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        array = value.detach().cpu().contiguous()
        return (
            f"{array.dtype}{tuple(array.shape)}".encode()
            + array.view(-1).view(torch.uint8).numpy().tobytes()
        )
    return repr(np.asarray(value)).encode()
