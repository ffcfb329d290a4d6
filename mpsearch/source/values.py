"""What PyTorch computes on the way, by the names that the converted ops have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._ct import quiet
from .modules import Sample, TorchModel, deterministic
from .provenance import named_graph
from .routes import direct, export, refrozen, trace, traceable_copy


def intermediates(
    model: TorchModel, sample: Sample, kind: str, frozen: bool = False
) -> dict[str, Tensor]:
    """Every tensor that the PyTorch model computes for a sample, under the name that MIL gives it.

    coremltools names a MIL value after the value of the traced graph, or the node of the exported
    program, that it stands for. ``kind`` and ``frozen`` are those of the conversion
    (:class:`mpsearch.source.precast.Precast`).
    """
    with deterministic(), quiet(), torch.no_grad():
        routed = direct(model, sample)
        if kind == "exported":
            routed = routed or export(model, sample)
            return {} if routed is None else _exported_values(routed.source, sample)
        routed = routed or trace(model, sample)
        if routed is not None and frozen:
            routed = refrozen(model, routed)
        if routed is None:
            return {}
        tensors = [traceable_copy(v) for v in sample.values() if isinstance(v, Tensor)]
        with model.in_fp32():
            return _traced_values(routed.source, tensors)


def _traced_values(traced: Any, tensors: list[Tensor]) -> dict[str, Tensor]:
    """Run a copy of the graph that gives all its tensors as a list."""
    graph = named_graph(traced)
    tensor = torch._C.TensorType.get()
    values = [
        value
        for node in graph.nodes()
        if node.kind() not in ("prim::GetAttr", "prim::Constant")
        for value in node.outputs()
        if value.type().isSubtypeOf(tensor)
    ]
    everything = graph.create("prim::ListConstruct", values, 1)
    everything.output().setType(torch._C.ListType(tensor))
    graph.appendNode(everything)
    while len(list(graph.outputs())):
        graph.eraseOutput(0)
    graph.registerOutput(everything.output())
    out = torch._C._create_function_from_graph("values", graph)(traced._c, *tensors)
    return dict(zip([v.debugName() for v in values], out, strict=True))


class _Recorder(torch.fx.Interpreter):
    """Keeps what every node gives."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        out = super().run_node(n)
        if isinstance(out, Tensor):
            self.values[n.name] = out
        return out


def _exported_values(program: Any, sample: Sample) -> dict[str, Tensor]:
    recorder = _Recorder(program.module())
    recorder.run(*(v.clone() for v in sample.values() if isinstance(v, Tensor)))
    return recorder.values
