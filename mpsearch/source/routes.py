"""The ways from a PyTorch model to what coremltools converts: as it is, traced, exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .._ct import quiet
from .flat import Flat
from .frozen import frozen
from .modules import Sample, TorchModel, deterministic, widened
from .provenance import line_of, numbered, scripted_layers, tagged, tagged_layer, traced_lines
from .torch_ops import unknown_ops

with quiet():
    from coremltools.converters.mil.mil import Operation


@dataclass(frozen=True, slots=True)
class Routed:
    """What is handed to ``ct.convert``, and how to read the result."""

    source: Any
    kind: str
    layer_of: Callable[[Operation], str]
    line_of: Callable[[Operation], str]
    wrapper: Flat | None = None
    decomposed: tuple[str, ...] = ()
    frozen: bool = False


def direct(model: TorchModel, sample: Sample) -> Routed | None:
    """Exported programs and TorchScript as they are."""
    if model.exported is not None:
        return None if model.half else _decomposed(model.exported)
    if not isinstance(model.source, torch.jit.ScriptModule):
        return None
    if len(model(sample)) > 1 and wrapped(model, sample) is not None:
        return None
    layers = scripted_layers(model.module)
    lines = line_of(traced_lines(model.module))
    return Routed(_own(model.module), "torchscript", layers, lines)


def _own(scripted: Any) -> Any:
    """A copy with a graph of its own, which coremltools inlines in place.

    Copies of a ScriptModule share their graphs; this is how torch.ao.quantization tells them apart.
    """
    clone = torch._C._hack_do_not_use_clone_module_with_class  # type: ignore[attr-defined]
    made = clone(scripted._c, [], [])
    return torch.jit._recursive.wrap_cpp_module(made)


def refrozen(model: TorchModel, routed: Routed) -> Routed | None:
    """The same with attributes as constants, for what cannot be converted otherwise.

    Not at once: ops then have other names. None where there is no scripted code.
    """
    scripts = (m for m in model.module.modules() if isinstance(m, torch.jit.ScriptModule))
    if routed.kind != "torchscript" or not any(True for _ in scripts):
        return None
    source = frozen(routed.source)
    layers = routed.layer_of
    if routed.wrapper is None and isinstance(model.module, torch.jit.ScriptModule):
        layers = scripted_layers(_Inlined(model.module, source))
    lines = line_of(traced_lines(source))
    return replace(routed, source=source, layer_of=layers, line_of=lines, frozen=True)


class _Inlined:
    """A module with its methods, and the inlined graph of what was made of it."""

    def __init__(self, module: Any, made: Any) -> None:
        self._module = module
        self.inlined_graph = made.inlined_graph

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def trace(model: TorchModel, sample: Sample) -> Routed | None:
    """``torch.jit.trace``, the way that coremltools knows best; of TorchScript it makes nothing."""
    tensors = tuple(traceable_copy(v) for v in sample.values() if isinstance(v, Tensor))
    paths: dict[str, str] = {}
    wrapper = wrapped(model, sample)
    if wrapper is None and isinstance(model.module, torch.jit.ScriptModule):
        return None
    traceable = model.module if wrapper is None else wrapper
    for state in model.states.values():
        state.zero_()
    with torch.no_grad(), tagged(model.module, paths), model.in_fp32():
        traced = torch.jit.trace(traceable, tensors, strict=False, check_trace=False)
    lines = line_of(traced_lines(traced))
    return Routed(traced, "torchscript", tagged_layer(paths), lines, wrapper)


def export(model: TorchModel, sample: Sample) -> Routed | None:
    """``torch.export``, for models that cannot be traced."""
    if isinstance(model.module, torch.jit.ScriptModule) or model.exported is not None:
        return None
    with torch.no_grad(), model.in_fp32():
        given = {k: traceable_copy(v) if isinstance(v, Tensor) else v for k, v in sample.items()}
        if model.positional(sample):
            exported = torch.export.export(model.module, tuple(given.values()), strict=False)
        else:
            exported = torch.export.export(model.module, (), given, strict=False)
    return _decomposed(exported)


def _decomposed(exported: Any) -> Routed:
    """An exported program, with those ops decomposed that coremltools does not know."""
    program, names = exported.run_decompositions({}), set[str]()
    while lacking := unknown_ops(program) - names:
        names |= lacking
        table = torch.export.default_decompositions()
        program = exported.run_decompositions({k: v for k, v in table.items() if str(k) in names})
    nodes = numbered(program)
    return Routed(program, "exported", nodes.layer, nodes.line, decomposed=tuple(sorted(names)))


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
