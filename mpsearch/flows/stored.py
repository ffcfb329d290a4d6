"""Stored configs: converting with one, and checking one against new weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import options
from .._ct import ct
from ..errors import InputError
from ..evaluation.metrics import NAMES
from ..memory import MOST_ELEMENTS
from ..package import config as _config
from ..package import emission
from ..package.config import Config, KeptOp
from ..program.lowering import CandidateOp, lower_candidates
from ..program.precision import Precision
from ..results.check import CheckResult
from ..source.conversion import convert
from ..source.data import argument_names, collect
from ..source.mlpackage import from_package
from ..source.modules import TorchModel
from ..source.precast import Precast, fingerprint
from ..source.prepare import check_device, open_source, prepare
from .surroundings import undisturbed


def _as_config(config: Config | str | Path) -> Config:
    return config if isinstance(config, Config) else _config.read(config)


def _match(config: Config, ops: Sequence[CandidateOp]) -> tuple[set[int], list[KeptOp]]:
    """The config's ops in the model, by name, type and layer, and those that are not there."""
    known = {(op.name, op.type, op.layer): op.index for op in ops}
    found, missing = set(), []
    for kept in config.fp32_ops:
        index = known.get((kept.name, kept.type, kept.layer))
        if index is None:
            missing.append(kept)
        else:
            found.add(index)
    return found, missing


def _example(config: Config) -> dict[str, Any]:
    elements = sum(math.prod(spec["shape"]) for spec in config.inputs)
    if not config.inputs or elements > MOST_ELEMENTS:
        raise InputError(
            f"the config's inputs hold {elements:,} values, expected 1 to {MOST_ELEMENTS:,}; give "
            "an example with --inputs"
        )
    return {
        spec["name"]: torch.zeros(spec["shape"], dtype=getattr(torch, spec["dtype"]))
        for spec in config.inputs
    }


@undisturbed
def apply(config: Config | str | Path, model: Any, inputs: Any = None) -> Any:
    """Convert a model with a stored config.

    Parameters
    ----------
    config
        A :class:`Config`, or the path of a ``precision.json`` or of its directory.
    model
        The same model, perhaps with new weights.
    inputs
        An example, as ``optimize`` takes it; default: zeros in the shapes that the config knows.

    Returns
    -------
    MLModel

    Raises
    ------
    InputError
        If the config names ops that the model does not have.
    """
    config = _as_config(config)
    precast = _convert(config, open_source(model), inputs)
    (name,) = precast.program.functions
    _, ops = lower_candidates(precast.program, name, precast.layer_of)
    found, missing = _match(config, ops)
    if missing:
        some = missing[:5]
        listed = ", ".join(f"{op.name} ({op.type}, {op.layer or 'no layer'})" for op in some)
        listed += f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise InputError(
            f"the config names {len(missing)} ops that the model does not have: {listed}; "
            "run optimize on this model"
        )
    stored = config.weights and (config.weights["storage"], config.weights["names"])
    return emission.convert(
        precast, emission.selector([op.name for op in ops if op.index in found]), stored or None
    )


def _convert(config: Config, model: Any, inputs: Any) -> Precast:
    if isinstance(model, ct.models.MLModel):
        return from_package(model)
    if inputs is None:
        samples = [_example(config)]
    else:
        samples = collect(inputs, argument_names(model)).samples
    torch_model = TorchModel(model, config.states)
    torch_model.settle(samples[0])
    return convert(torch_model, samples, config.target, config.io_dtype)


@undisturbed
def check(
    config: Config | str | Path,
    model: Any,
    inputs: Any,
    *,
    targets: Any = None,
    budget: float | None = None,
    metric: Any = None,
    device: str = "cpu",
) -> CheckResult:
    """Measure whether a stored config still holds, for instance after retraining.

    Parameters
    ----------
    config, model
        As for :func:`apply`.
    inputs
        As for ``optimize``; all samples are used.
    budget, metric
        Default: the config's.

    Raises
    ------
    InputError
        If something given cannot be used.
    """
    config = _as_config(config)
    check_device(device)
    if metric is None and (config.custom_metric or config.metric not in NAMES):
        raise InputError(
            f"the config was made with the metric {config.metric!r}, a function, which a config "
            "does not bring along; give it: metric= in Python, --metric package.module:callable"
        )
    prepared = prepare(
        model,
        inputs,
        config.metric if metric is None else metric,
        config.numerics,
        config.target,
        0.0,
        config.io_dtype,
        config.states,
        targets,
    )
    larger = prepared.metric.larger_is_better
    limit = options.budget(config.budget if budget is None else budget, larger)
    found, missing = _match(config, prepared.ops)
    evaluator = prepared.evaluator(device)
    count = len(prepared.ops)
    loss = evaluator.evaluate(Precision.of(found, count)).loss
    show = prepared.metric.loss_of
    return CheckResult(
        holds=not missing and loss <= show(limit),
        error=show(loss),
        error_fp16=show(evaluator.evaluate(Precision.all_fp16(count)).loss),
        error_fp32=show(evaluator.evaluate(Precision.all_fp32(count)).loss),
        budget=limit,
        metric=prepared.metric.name,
        unmatched=missing,
        same_model=fingerprint(prepared.precast) == config.fingerprint,
    )
