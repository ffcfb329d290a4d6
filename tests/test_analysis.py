"""Verdicts: the planted cause is found, at the right op, and nothing is found where nothing is."""

from __future__ import annotations

import collections
import importlib
import json
import math
from pathlib import Path

import pytest
import torch

import mpsearch
from mpsearch.cli import main
from mpsearch.numerics.formats import narrow, rounded
from tests.causes import CAUSES, planted


def _right(seed: int) -> bool:
    """Whether an op that suffers the planted cause is among the worst, with that verdict."""
    case = planted(seed)
    culprits = mpsearch.analyze(case.model, case.samples).culprits
    if not culprits:
        return False
    worst = culprits[0].sensitivity
    near = [op for op in culprits if op.sensitivity >= worst / 4 or math.isinf(worst)]
    return any(op.verdict == case.cause and op.type in case.types for op in near)


@pytest.mark.thorough
def test_verdicts_on_a_hundred_models_with_a_planted_cause():
    wrong = [seed for seed in range(100) if not _right(seed)]
    kinds = collections.Counter(CAUSES[seed % len(CAUSES)] for seed in wrong)
    assert len(wrong) <= 5, (wrong, kinds)


def test_a_benign_model_has_no_culprits():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8))
    found = mpsearch.analyze(model.eval(), [torch.randn(2, 8) for _ in range(4)])
    assert found.culprits == []
    assert found.is_precision
    assert found.error_fp16 < 2e-3


class Inverse(torch.nn.Module):
    """coremltools #2773: reciprocal is converted with an epsilon of 1e-4, which is not there."""

    def forward(self, x):
        tiny = torch.abs(x) * 1e-4
        flipped = torch.reciprocal(tiny)
        return torch.tanh(flipped * 1e-4)


class SmallNorm(torch.nn.Module):
    """coremltools #2821: the epsilon of rms_norm is multiplied by the largest square."""

    def __init__(self):
        super().__init__()
        self.before = torch.nn.Linear(8, 8)
        self.norm = torch.nn.RMSNorm(8, eps=0.3)

    def forward(self, x):
        return torch.tanh(self.norm(self.before(x)))


@pytest.mark.parametrize(
    ("model", "op_type", "layer"), [(Inverse(), "inverse", ""), (SmallNorm(), "", "norm")]
)
def test_a_wrong_conversion_is_not_precision(model, op_type, layer):
    torch.manual_seed(0)
    data = [10 * (1 + torch.rand(1, 8)) for _ in range(4)]
    found = mpsearch.analyze(model.eval(), data)
    assert not found.is_precision
    assert found.error_fp32 > 0.01
    assert found.explanation.startswith("Not precision")
    (place,) = [op for op in found.ops if op.name == found.parts_at]
    assert (place.type == op_type) if op_type else (place.layer == layer)


def test_ranges_are_those_of_the_values():
    class Scaled(torch.nn.Module):
        def forward(self, x):
            return torch.tanh(x * 1000.0)

    x = torch.tensor([[1e-9, -0.5, 0.0, 100.0]])
    found = mpsearch.analyze(Scaled(), [x])
    (product,) = [op for op in found.ops if op.type == "mul"]
    assert product.range.largest == pytest.approx(1e5)
    assert product.range.smallest == pytest.approx(1e-6)
    assert product.range.overflow == product.range.below_normal == 0.25


def test_rounding_in_parts_is_rounding_as_a_whole():
    """All three losses together are torch's own conversion, bit for bit."""
    generator = torch.Generator().manual_seed(0)
    scale = 10.0 ** torch.randint(-9, 7, (50_000,), generator=generator)
    edges = [0.0, math.inf, -math.inf, 65504.0, 65519.99, 65520.0, 2.0**-24, 2.0**-25, 2.0**-14]
    x = torch.cat([torch.randn(50_000, generator=generator) * scale, torch.tensor(edges)])
    assert torch.equal(rounded(x), narrow(x).float())
    assert torch.equal(rounded(x, digits=False, overflow=False, underflow=False), x)
    largest = torch.finfo(torch.float32).max
    assert torch.isfinite(rounded(torch.tensor([1e30, largest, -largest]), overflow=False)).all()
    assert (rounded(torch.tensor([1e-30]), underflow=False) > 0).all()


def test_the_command_prints_a_table_and_json(capsys):
    arguments = ["analyze", "benchmarks.zoo.log_softmax:build"]
    arguments += ["--inputs", "benchmarks.zoo.log_softmax:samples"]
    with pytest.raises(SystemExit):
        main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert any("underflow" in line and "softmax" in line for line in lines)
    with pytest.raises(SystemExit):
        main([*arguments, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {op["verdict"] for op in found["ops"]} == {"underflow", "fine"}


@pytest.mark.thorough
def test_ops_know_the_line_of_python_that_they_come_from():
    """For traced and for exported models: the line says what the op does."""
    example = importlib.import_module("examples.stylegan2")
    model, data = example.build(small=True).eval(), example.samples(small=True)
    exported = torch.export.export(model, (data[0],), strict=False)
    source = Path(example.__file__).read_text().splitlines()
    says = {"rsqrt": "rsqrt", "leaky_relu": "leaky_relu", "conv": "conv2d", "reduce_sum": ".sum("}
    for given in (model, exported):
        ops = mpsearch.analyze(given, data).ops
        seen = set()
        for op in ops:
            if op.type in says and op.layer.startswith("blocks"):
                file, _, number = op.line.rpartition(":")
                assert file.endswith("examples/stylegan2.py"), op
                # A call over several lines is at any of them.
                near = "".join(source[max(int(number) - 4, 0) : int(number) + 3])
                assert says[op.type] in near, (op, near)
                seen.add(op.type)
        assert seen == set(says)


def test_layers_gather_their_ops():
    example = importlib.import_module("examples.stylegan2")
    found = mpsearch.analyze(example.build(small=True), example.samples(small=True))
    assert sum(row.ops for row in found.layers) == sum(bool(op.layer) for op in found.ops)
    assert sum(row.harmful for row in found.layers) == len(found.culprits) > 0
    worst = found.layers[0]
    assert (worst.verdict, worst.layer) == (found.culprits[0].verdict, found.culprits[0].layer)


def test_the_graph_and_its_node_data_fit_together(tmp_path, capsys):
    """As Model Explorer 0.1.34 asks: keys are node ids, edges come from nodes, no bare NaN."""
    arguments = ["analyze", "benchmarks.zoo.log_softmax:build", "--top", "1"]
    arguments += ["--inputs", "benchmarks.zoo.log_softmax:samples"]
    with pytest.raises(SystemExit):
        main([*arguments, "--model-explorer", str(tmp_path / "graph.json")])
    capsys.readouterr()
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == ["graph.json", "graph.sensitivity.json", "graph.verdict.json"]
    (graph,) = json.loads((tmp_path / "graph.json").read_text())["graphs"]
    ids = [node["id"] for node in graph["nodes"]]
    assert len(set(ids)) == len(ids) > 4
    for node in graph["nodes"]:
        assert {"id", "label", "namespace"} <= node.keys()
        assert all(edge["sourceNodeId"] in ids for edge in node["incomingEdges"])
        assert all(isinstance(attr["value"], str) for attr in node["attrs"])
    assert sum(len(node["incomingEdges"]) for node in graph["nodes"]) >= len(ids) - 1
    for name in files[1:]:
        data = json.loads((tmp_path / name).read_text(), parse_constant=pytest.fail)
        assert data["results"].keys() == set(ids)
        assert all(entry["bgColor"].startswith("#") for entry in data["results"].values())
