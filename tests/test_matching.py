"""Configs over time: of models that were refactored since, and of older versions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mpsearch

from .command import run
from .models import Norm

CONFIGS = Path(__file__).parent / "configs"
BUDGET = 1e-2


class Block(torch.nn.Module):
    """(1, 4, 8) -> (1, 4, 8), broken in FP16 by large inputs where ``loud``."""

    def __init__(self, loud=False):
        super().__init__()
        self.norm = Norm()
        self.linear = torch.nn.Linear(8, 8)
        self.loud = loud

    def forward(self, x):
        return x + torch.tanh(self.linear(self.norm(600 * x if self.loud else x)))


class Before(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList([Block(), Block(loud=True), Block()])
        self.head = torch.nn.Linear(8, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Renamed(torch.nn.Module):
    """The same with every module under another name."""

    def __init__(self):
        super().__init__()
        before = Before()
        self.encoder = torch.nn.Module()
        self.encoder.stages = before.layers
        self.classifier = before.head

    def forward(self, x):
        for stage in self.encoder.stages:
            x = stage(x)
        return self.classifier(x)


class Grown(torch.nn.Module):
    """The same with an activation and a layer put in at the front, which counts ops anew."""

    def __init__(self, renamed=False):
        super().__init__()
        before = Before()
        self.stem = torch.nn.Linear(8, 8)
        self.renamed = renamed
        if renamed:
            self.stages, self.top = before.layers, before.head
        else:
            self.layers, self.head = before.layers, before.head
        with torch.no_grad():
            self.stem.weight.copy_(torch.eye(8))
            self.stem.bias.zero_()

    def forward(self, x):
        x = torch.relu(self.stem(x) + 8) - 8
        for layer in self.stages if self.renamed else self.layers:
            x = layer(x)
        return (self.top if self.renamed else self.head)(x)


class Doubled(torch.nn.Module):
    """Twice as many of the same blocks, under other names: which is which?"""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.c, self.d = (Block(loud=True) for _ in range(4))
        self.top = torch.nn.Linear(8, 3)

    def forward(self, x):
        return self.top(self.d(self.c(self.b(self.a(x)))))


class Other(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, x):
        return torch.softmax(self.conv(torch.sigmoid(x)), -1)


def data():
    return [torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(i)) for i in range(8)]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    result = mpsearch.optimize(Before().eval(), data(), BUDGET)
    assert result.kept and all(op.layer.startswith("layers.1") for op in result.kept)
    return result.save(tmp_path_factory.mktemp("before") / "out")


@pytest.mark.thorough
@pytest.mark.parametrize("model", [Renamed, Grown, lambda: Grown(renamed=True)])
def test_ops_that_go_by_other_names_are_found_and_listed(model, config):
    checked = mpsearch.check(config, model().eval(), data())
    assert not checked.unmatched and checked.holds
    assert checked.error <= BUDGET < checked.error_fp16
    kept = mpsearch.package.config.read(config).fp32_ops
    assert {op.was for op in checked.moved} <= set(kept)
    for op in checked.moved:
        was, now = op.was.layer.split("."), op.layer.split(".")
        assert now[-len(was[1:]) :] == was[1:]  # the same block of the same list
    if model is Renamed:
        assert {op.layer.rpartition("stages.")[0] for op in checked.moved} == {"encoder."}


def test_apply_keeps_the_same_ops_under_their_new_names(config, caplog):
    package = mpsearch.apply(config, Renamed().eval())
    executed = mpsearch.Executor(package)
    before = mpsearch.Executor(config / "model.mlpackage")
    x = data()[0].numpy()
    (a,), (b,) = executed.predict({"x": x}).values(), before.predict({"x": x}).values()
    assert (a == b).all()
    assert any("matched by its place" in record.message for record in caplog.records)


@pytest.mark.thorough
@pytest.mark.parametrize("model", [Doubled, Other])
def test_what_could_be_several_ops_or_is_none_is_refused(model, config):
    checked = mpsearch.check(config, model().eval(), data())
    assert checked.unmatched and not checked.holds
    with pytest.raises(mpsearch.InputError, match="the model does not have"):
        mpsearch.apply(config, model().eval())


def test_the_same_model_with_new_weights_moves_nothing(config):
    torch.manual_seed(5)
    model = Before()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    checked = mpsearch.check(config, model.eval(), data())
    assert not checked.moved and not checked.unmatched


@pytest.mark.parametrize("command", ["check", "apply"])
def test_the_command_line_lists_what_has_moved(command, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": torch.cat(data())}, "data.pt")
    torch.jit.trace(Renamed().eval(), data()[0]).save("model.pt")
    rest = ["--inputs", "data.pt"] if command == "check" else ["-o", "new.mlpackage"]
    said = run(command, config, "model.pt", *rest)
    assert "matched by its place" in said.output and "encoder.stages.1" in said.output


# --- older versions --------------------------------------------------------------------------


def old_model():
    """What the configs in tests/configs were made of, by the mpsearch of those days."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 8), Norm(), torch.nn.Linear(8, 4)).eval()


@pytest.mark.parametrize("version", [1, 2])
def test_configs_of_older_versions_are_read(version):
    path = CONFIGS / f"version-{version}.json"
    raw = json.loads(path.read_text())
    assert raw["version"] == version
    config = mpsearch.package.config.read(path)
    assert [op.name for op in config.fp32_ops] == [op["name"] for op in raw["fp32_ops"]]
    assert config.budget == raw["budget"] and config.fingerprint == raw["fingerprint"]
    loud = [300 * x for x in data()]
    assert mpsearch.check(path, old_model(), loud).holds
    package = mpsearch.Executor(mpsearch.apply(path, old_model()))
    found = next(iter(package.predict({"input": loud[0].numpy()}).values()))
    exact = old_model()(loud[0]).detach().numpy()
    assert ((found - exact) ** 2).sum() ** 0.5 < BUDGET * (exact**2).sum() ** 0.5


@pytest.mark.parametrize("model", [Before, Renamed, Grown])
def test_a_config_made_with_an_older_coremltools_holds(model):
    path = CONFIGS / "coremltools-8.3.json"
    assert mpsearch.package.config.read(path).versions["coremltools"] == "8.3.0"
    checked = mpsearch.check(path, model().eval(), data())
    assert checked.holds and bool(checked.moved) == (model is not Before)


@pytest.mark.parametrize("version", [1, 2])
def test_a_config_that_lacks_what_its_version_has_is_one_line(version, tmp_path):
    raw = json.loads((CONFIGS / f"version-{version}.json").read_text())
    del raw["fp32_ops"]
    (tmp_path / "precision.json").write_text(json.dumps(raw))
    with pytest.raises(mpsearch.InputError, match="fp32_ops"):
        mpsearch.package.config.read(tmp_path)


@pytest.mark.parametrize(
    "broken",
    [{"places": [99999]}, {"graph": ["linear"]}, {"places": []}, {"version": 4}, {"version": "3"}],
)
def test_a_broken_config_is_one_line(broken, config, tmp_path):
    raw = json.loads((config / "precision.json").read_text())
    (tmp_path / "precision.json").write_text(json.dumps(raw | broken))
    with pytest.raises(mpsearch.InputError, match=r"precision\.json"):
        mpsearch.package.config.read(tmp_path)
