"""The modules that ops come from: the same from a saved file as from the model in memory."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import mpsearch
from mpsearch.source.prepare import prepare

ARCHITECTURES = [
    *("albert", "beit", "clip_vision", "gpt2", "llama", "mobilenet_v2", "resnet50", "t5", "vit"),
    *("whisper_decoder",),
]


class First(nn.Module):
    """The first output of a model, its arguments by position, as people save it."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors):
        return self.model(**dict(zip(self.names, tensors, strict=True)))[0]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(x + self.fc2(torch.relu(self.fc1(x))))


class Lists(nn.Module):
    """Two lists, whose parts have the same places."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleList([Block() for _ in range(2)])
        self.decoder = nn.ModuleList([Block() for _ in range(2)])
        self.last = nn.Sequential(Block(), nn.GELU(), nn.Linear(8, 4))

    def forward(self, x):
        for part in self.encoder:
            x = part(x)
        for part in self.decoder:
            x = part(x)
        return self.last(x) * 2


def layers(source, sample):
    return [(op.type, op.layer) for op in prepare(source, [sample, sample]).ops]


@pytest.fixture(scope="module")
def lists():
    torch.manual_seed(0)
    return Lists().eval()


@pytest.mark.parametrize("how", ["traced", "scripted", "exported"])
def test_layers_of_a_file_are_those_in_memory(how, lists, tmp_path):
    x = torch.randn(1, 8)
    path = tmp_path / ("model.pt2" if how == "exported" else "model.pt")
    if how == "exported":
        torch.export.save(torch.export.export(lists, (x,)), path)
    else:
        made = torch.jit.trace(lists, x) if how == "traced" else torch.jit.script(lists)
        made.save(str(path))
    assert layers(str(path), x) == layers(lists, x)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_of_architectures(name, tmp_path):
    pytest.importorskip("transformers")
    from benchmarks.architectures import ARCHITECTURES as MADE

    logging.getLogger("transformers").setLevel(logging.ERROR)
    model, samples = MADE[name](False)
    model, sample = First(model, list(samples[0])).eval(), tuple(samples[0].values())
    wanted = layers(model, sample)
    with torch.no_grad():
        traced = torch.jit.trace(model, sample, strict=False, check_trace=False)
        traced.save(str(tmp_path / "model.pt"))
        torch.export.save(torch.export.export(model, sample, strict=False), tmp_path / "model.pt2")
    assert len({layer for _, layer in wanted}) > 5
    assert layers(str(tmp_path / "model.pt"), sample) == wanted
    found = layers(str(tmp_path / "model.pt2"), sample)
    assert {layer for _, layer in found} == {layer for _, layer in wanted}


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["llama", "mobilenet_v2"])
def test_layers_of_a_package_that_mpsearch_converted(name, tmp_path):
    pytest.importorskip("transformers")
    from benchmarks.architectures import ARCHITECTURES as MADE

    model, samples = MADE[name](False)
    mpsearch.convert(model, samples[0]).save(str(tmp_path / "model.mlpackage"))
    found = layers(str(tmp_path / "model.mlpackage"), samples[0])
    assert sorted(found) == sorted(layers(model, samples[0]))


def test_where_no_layer_is_known_that_is_said(lists, tmp_path):
    frozen = torch.jit.freeze(torch.jit.trace(lists, torch.randn(1, 8)))
    frozen.save(str(tmp_path / "model.pt"))
    data = [torch.randn(1, 8) for _ in range(4)]
    for wanted in (
        mpsearch.Constraints(by="layer"),
        mpsearch.Constraints(keep_fp32=("layer:encoder.*",)),
    ):
        with pytest.raises(mpsearch.InputError, match="layers are not known"):
            mpsearch.optimize(str(tmp_path / "model.pt"), data, 1e-2, constraints=wanted)


def test_an_exported_program_takes_by_name_what_it_was_exported_with(tmp_path):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x, *, scale, shift):
            return self.fc(x) * scale - shift

    x, scale, shift = torch.randn(3, 1, 4)
    program = torch.export.export(Sum().eval(), (x,), {"scale": scale, "shift": shift})
    torch.export.save(program, tmp_path / "model.pt2")
    samples = [{"x": x + i, "scale": scale, "shift": shift} for i in range(4)]
    for source in (program, str(tmp_path / "model.pt2")):
        found = mpsearch.optimize(source, samples, 1e-2)
        assert found.met and found.candidate_ops == 3
