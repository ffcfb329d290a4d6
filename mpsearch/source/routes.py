"""The ways from a PyTorch model to what coremltools converts: as it is, traced, exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._ct import quiet
from ..program.lowering import torchscript_layer
from .flat import Flat
from .modules import Sample, TorchModel, deterministic, widened
from .provenance import exported_layers, exported_lines, tagged, tagged_layer, traced_lines

with quiet():
    from coremltools.converters.mil.mil import Operation


@dataclass(frozen=True, slots=True)
class Routed:
    """What is handed to ``ct.convert``, and how to read the result."""

    source: Any
    kind: str
    layer_of: Callable[[Operation], str]
    lines: dict[str, str]
    wrapper: Flat | None = None


#: What exported programs are decomposed by: nothing but what no backend keeps, or all the way.
DECOMPOSED: dict[str, tuple[Any, ...]] = {"exported": ({},), "decomposed": ()}


def direct(model: TorchModel, sample: Sample) -> Routed | None:
    """Exported programs and TorchScript as they are."""
    if model.exported is not None and not model.half:
        program = model.exported.run_decompositions({})
        return Routed(program, "exported", exported_layers(program), exported_lines(program))
    if isinstance(model.source, torch.jit.ScriptModule) and len(model(sample)) == 1:
        return Routed(model.module, "torchscript", torchscript_layer, traced_lines(model.module))
    return None


def trace(model: TorchModel, sample: Sample) -> Routed:
    """``torch.jit.trace``, the way that coremltools knows best."""
    tensors = tuple(traceable_copy(v) for v in sample.values() if isinstance(v, Tensor))
    paths: dict[str, str] = {}
    wrapper = wrapped(model, sample)
    traceable = model.module if wrapper is None else wrapper
    for state in model.states.values():
        state.zero_()
    with torch.no_grad(), tagged(model.module, paths), model.in_fp32():
        traced = torch.jit.trace(traceable, tensors, strict=False, check_trace=False)
    return Routed(traced, "torchscript", tagged_layer(paths), traced_lines(traced), wrapper)


def export(model: TorchModel, sample: Sample) -> Routed | None:
    """``torch.export``, for models that use ops which coremltools knows only decomposed."""
    return _exported(model, sample, "exported")


def decompose(model: TorchModel, sample: Sample) -> Routed | None:
    """``torch.export`` down to PyTorch's core ops."""
    return _exported(model, sample, "decomposed")


def _exported(model: TorchModel, sample: Sample, kind: str) -> Routed | None:
    if isinstance(model.module, torch.jit.ScriptModule) or model.exported is not None:
        return None
    with torch.no_grad(), model.in_fp32():
        given = {k: traceable_copy(v) if isinstance(v, Tensor) else v for k, v in sample.items()}
        if model.positional(sample):
            exported = torch.export.export(model.module, tuple(given.values()), strict=False)
        else:
            exported = torch.export.export(model.module, (), given, strict=False)
    program = exported.run_decompositions(*DECOMPOSED[kind])
    return Routed(program, kind, exported_layers(program), exported_lines(program))


def traceable_copy(value: Tensor) -> Tensor:
    """A copy in a dtype that coremltools takes: a model may change its inputs in place."""
    value = widened(value)
    return value.int() if value.dtype is torch.bool else value.clone()


def wrapped(model: TorchModel, sample: Sample) -> Flat | None:
    """The wrapper that a model needs to be traced, None where it can be traced as it is."""
    tensors = {k: v for k, v in sample.items() if isinstance(v, Tensor)}
    booleans = [k for k, v in tensors.items() if v.dtype is torch.bool]
    with torch.no_grad(), deterministic(), quiet(), model.in_fp32():
        out = model.call({k: widened(v).clone() if k in tensors else v for k, v in sample.items()})
    flat = isinstance(out, Tensor) or (
        isinstance(out, tuple) and type(out) is tuple and all(isinstance(o, Tensor) for o in out)
    )
    if flat and not booleans and len(tensors) == len(sample) and model.positional(sample):
        return None
    constants = {k: v for k, v in sample.items() if k not in tensors}
    return Flat(model.module, list(tensors), booleans, constants)
