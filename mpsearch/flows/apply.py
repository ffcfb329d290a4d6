"""Converting with a stored config."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Any

import torch

from .._ct import ct
from ..errors import InputError
from ..memory import MOST_ELEMENTS
from ..package import config as _config
from ..package import emission
from ..package.config import Config
from ..package.matching import match
from ..program.lowering import lower_candidates
from ..scaling.scaled import changed
from ..source.conversion import convert
from ..source.data import Data, argument_names, collect
from ..source.items import items
from ..source.mlpackage import from_package
from ..source.modules import TorchModel
from ..source.precast import Precast, fingerprint
from ..source.prepare import open_source
from .isolation import isolated

_LOGGER = logging.getLogger("mpsearch")


def as_config(config: Config | str | Path) -> Config:
    """A config, or the one at a path."""
    if isinstance(config, Config):
        return config
    if not isinstance(config, (str, os.PathLike)):
        kind = type(config).__name__
        raise InputError(f"config is a {kind}; expected a Config (result.config) or a path")
    return _config.read(config)


@isolated
def apply(config: Config | str | Path, model: Any, data: Any = None) -> Any:
    """Convert a model with a stored config.

    Parameters
    ----------
    config
        A :class:`Config`, or the path of a ``precision.json`` or of its directory.
    model
        The same model, perhaps with new weights.
    data
        An example, as ``optimize`` takes it; default: zeros in the shapes that the config knows.

    Returns
    -------
    MLModel

    Raises
    ------
    InputError
        If the config names ops that the model does not have. Those that go by other names now are
        found by their places (:mod:`mpsearch.package.matching`), and logged.
    """
    config = as_config(config)
    precast = _convert(config, open_source(model), data)
    if fingerprint(precast) != config.fingerprint:
        _LOGGER.warning(
            "the weights or the program are not those that the config was found with; check says "
            "whether the budget holds"
        )
    if config.rewrites or config.scales:
        precast = changed(precast, config.rewrites, config.scales)
    (name,) = precast.program.functions
    _, ops = lower_candidates(precast.program, name, precast.layer_of)
    matched = match(config, ops)
    if missing := matched.missing:
        some = missing[:5]
        listed = ", ".join(map(str, some))
        listed += f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise InputError(
            f"the config names {len(missing)} ops that the model does not have, or of which it has "
            f"several that could be meant: {listed}; run optimize on this model"
        )
    for op in matched.moved:
        _LOGGER.warning("matched by its place: %s", op)
    stored = None if config.weights is None else (config.weights.dtype, config.weights.names)
    names = [op.name for op in ops if op.index in matched.found]
    return emission.convert(precast, emission.selector(names), stored)


def _convert(config: Config, model: Any, data: Any) -> Precast:
    if isinstance(model, ct.models.MLModel):
        return from_package(model)
    given = Data([_example(config)]) if data is None else collect(data, argument_names(model))
    torch_model = TorchModel(model, config.conversion.states)
    torch_model.check(given.samples[0])
    if config.conversion.batches == "apart" and not config.conversion.states:
        given = items(given, torch_model)
    io_dtype = config.conversion.io_dtype or "fp32"
    return convert(torch_model, given.samples, config.conversion.target, io_dtype)


def _example(config: Config) -> dict[str, Any]:
    elements = sum(math.prod(spec.shape) for spec in config.inputs)
    if not config.inputs or elements > MOST_ELEMENTS:
        raise InputError(
            f"the config's inputs hold {elements:,} values, expected 1 to {MOST_ELEMENTS:,}; give "
            "an example with --inputs"
        )
    return {s.name: torch.zeros(s.shape, dtype=getattr(torch, s.dtype)) for s in config.inputs}
