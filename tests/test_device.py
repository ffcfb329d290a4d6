"""Profiles that were observed, the probe that observes, and Core ML itself, by a stand-in."""

from __future__ import annotations

import json

import coremltools as ct
import msgspec
import numpy as np
import pytest
import torch

import mpsearch
from mpsearch.numerics.choosing import chosen
from mpsearch.numerics.observed import Observation, Observed, Rule, read
from mpsearch.numerics.orders import ORDERS
from mpsearch.numerics.profiles import PROFILES
from mpsearch.probing.questions import subjects

from . import standin
from .command import run
from .models import batches, net
from .trials.probes import Planted, differences, planted

MODEL = ["tests.models:net", "--inputs", "tests.models:batches"]


# -- orders of sums -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("count", [1, 2, 7, 16, 33, 96])
def test_an_order_adds_every_term_once(name, count):
    """Integers, which FP64 adds exactly in any order; and as a tree, with every leaf in it."""
    assert ORDERS[name](range(1, count + 1), lambda a, b: a + b) == count * (count + 1) // 2
    tree = ORDERS[name](([i] for i in range(count)), lambda a, b: a + b)
    assert sorted(tree) == list(range(count))


def test_orders_are_what_their_names_say():
    def shown(name, count):
        return ORDERS[name]("abcdefgh"[:count], lambda a, b: f"({a}{b})")

    assert shown("sequential", 4) == "(((ab)c)d)"
    assert shown("pairwise", 8) == "(((ab)(cd))((ef)(gh)))"
    assert shown("strided 2", 6) == "(((ac)e)((bd)f))"
    assert shown("blocked 2", 6) == "(((ab)(cd))(ef))"


# -- profiles in files ----------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_profile_without_rules_is_ieee_and_one_that_rounds_inside_is_strict():
    plain = Observed(Observation(name="plain"))
    inside = Observed(Observation(name="inside", otherwise=Rule(inside="fp16")))
    told_apart = 0
    for subject in subjects():
        question = subject.inside
        ieee, strict, one, other = (
            mpsearch.Executor(question.package, profile).predict(question.named)["y"]
            for profile in (PROFILES["ieee"], PROFILES["strict"], plain, inside)
        )
        np.testing.assert_array_equal(one, ieee, subject.op_type)
        np.testing.assert_array_equal(other, strict, subject.op_type)
        told_apart += not np.array_equal(ieee, strict)
    assert told_apart > 10


def test_a_profile_comes_back_from_its_file(tmp_path):
    seen = planted(3)
    file = tmp_path / "profile.json"
    file.write_text(seen.to_json())
    assert read(file).seen == seen
    (again,) = chosen(str(file))
    assert again.name == "planted 3"
    other = msgspec.structs.replace(seen, subnormals="flushed", nan="inf")
    assert Observed(other).identity != again.identity


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "version 2, expected 1"),
        ({"name": "a,b"}, "no comma"),
        ({"name": "ane"}, "built-in"),
        ({"name": "\x1b[31mred"}, "expected 1 to 80 characters"),
        ({"otherwise": {"order": "backwards"}}, "order 'backwards' is not known"),
        ({"otherwise": {"overflows": -1}}, "no magnitude"),
        ({"otherwise": {"result": "fp32", "inside": "fp16"}}, "what is rounded inside is rounded"),
        ({"ops": {"add": {"code": "import os"}}}, "unknown field"),
        ({"subnormals": 3}, "Expected"),
    ],
)
def test_what_is_no_profile_is_refused_in_a_line(change, said, tmp_path):
    content = json.loads(Observation(name="p").to_json()) | change
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(content))
    with pytest.raises(mpsearch.InputError) as told:
        read(file)
    assert said in str(told.value) and "\n" not in str(told.value)


@pytest.mark.thorough
def test_a_search_takes_a_profile_from_a_file(tmp_path):
    """One in which products overflow at 1 keeps what ieee does not need to keep."""
    rules = {"linear": Rule(overflows=1.0)}
    file = tmp_path / "profile.json"
    file.write_text(Observation(name="narrow", ops=rules).to_json())

    argv = ["--budget", "1e-1", "-o", tmp_path / "out", "--numerics", file, "--json"]
    found = json.loads(run("optimize", *MODEL, *argv).stdout)
    assert any(op["type"] == "linear" for op in found["kept"])
    argv[-2] = "ieee"
    found = json.loads(run("optimize", *MODEL, *argv).stdout)
    assert not any(op["type"] == "linear" for op in found["kept"])
    said = run("check", tmp_path / "out", *MODEL, "--numerics", file, expect=1)
    assert "does not hold" in said.stdout
    said = run("optimize", *MODEL, *argv[:4], "--numerics", "nowhere.json", expect=2)
    assert "nowhere.json does not exist" in said.stderr


# -- the probe ------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_probe_recovers_what_was_planted():
    """python -m tests.trials.probes plants more."""
    seen = planted(1000)
    found = mpsearch.probe(Planted(seen))
    assert differences(seen, found) == []
    assert found.unexplained == ()
    assert found.name == "planted 1000" and found.about == {"device": "planted"}


def test_the_probe_says_what_it_cannot_explain():
    """A device whose sums are taken backwards, which is none of the orders."""

    class Backwards(Planted):
        def load(self, model):
            loaded = super().load(model)
            types = {op.op_type for op in model._mil_program.functions["main"].operations}
            if "matmul" not in types:
                return loaded

            class Reversed:
                def predict(self, inputs):
                    return {"y": loaded.predict(inputs)["y"] * np.float32(1.01)}

            return Reversed()

    found = mpsearch.probe(Backwards(Observation(name="odd")))
    assert found.unexplained == ("matmul",)
    assert "matmul" not in found.ops


# -- Core ML --------------------------------------------------------------------------------------


def test_off_a_mac_it_is_said_in_a_line(tmp_path):
    for argv in (
        ["probe", "-o", tmp_path / "p.json"],
        ["verify", tmp_path, "--random", "1"],
        ["optimize", *MODEL, "--budget", "1e-2", "-o", tmp_path / "out", "--backend", "coreml"],
    ):
        said = run(*argv, expect=2)
        assert "Core ML runs on a Mac" in said.stderr, argv
    assert not list(tmp_path.iterdir())


def test_probe_writes_a_profile(tmp_path, monkeypatch):
    seen = Observation(name="device", ops={"matmul": Rule(overflows=32768.0)})
    standin.install(monkeypatch, Observed(seen))
    file = tmp_path / "mac.json"
    said = run("probe", "-o", file, "--name", "my mac", "--compute-units", "CPU_AND_GPU")
    assert "wrote" in said.stdout
    found = read(file).seen
    assert differences(seen, found) == []
    assert found.name == "my mac"
    assert found.about["compute units"] == "CPU_AND_GPU" and found.about["macOS"] == "26.1"
    units = {model.compute_unit for model in standin.CoreMLStandIn.loaded}
    assert units == {ct.ComputeUnit.CPU_AND_GPU}


def test_verify_compares_a_device_with_what_was_promised(tmp_path, monkeypatch):
    out = tmp_path / "out"
    run("optimize", *MODEL, "--budget", "1e-2", "-o", out)
    standin.install(monkeypatch)
    found = json.loads(run("verify", out, *MODEL, "--json").stdout)
    promised = json.loads((out / "result.json").read_text())
    assert found["holds"] is True
    assert found["error"] == pytest.approx(found["simulated"])
    assert found["promised"] == promised["error"]
    assert [row["apart"] for row in found["outputs"]] == [0.0]
    assert (found["load_milliseconds"], found["predict_milliseconds"]) == (4.0, 2.0)
    assert {op["device"] for op in found["ops"]} == {"CPU", "Neural Engine"}
    assert found["parted"] == []
    said = run("verify", out, *MODEL)
    assert "the package holds" in said.stdout and "Neural Engine: " in said.stdout
    # A device on which products are infinite from 1 on breaks what was promised.
    standin.install(
        monkeypatch, Observed(Observation(name="n", ops={"linear": Rule(overflows=1.0)}))
    )
    said = run("verify", out, *MODEL, expect=1)
    assert "does not hold" in said.stdout and "parts from FP32 at" in said.stdout
    # Without the model: how far the device is from the simulation.
    found = json.loads(run("verify", out, "--random", "3", "--not-timed", "--json").stdout)
    assert found["holds"] is None and found["error"] is None and found["samples"] == 3


@pytest.mark.thorough
def test_a_search_on_a_device_holds_there(tmp_path, monkeypatch):
    """A device with another kind of FP16: what the executor would not keep, the search keeps."""
    rules = Observation(name="narrow", ops={"linear": Rule(overflows=0.5)})
    standin.install(monkeypatch, Observed(rules))
    execution = mpsearch.Execution(backend="coreml", compute_units="CPU_ONLY")
    options = {"heldout": 0.25, "limits": mpsearch.Limits(trials=60)}
    found = mpsearch.optimize(net(), batches(), 1e-2, execution=execution, **options)
    assert found.met
    loaded = standin.CoreMLStandIn.loaded
    assert {model.compute_unit for model in loaded} == {ct.ComputeUnit.CPU_ONLY}
    assert sum(model.predictions for model in loaded) > 10
    found.save(tmp_path / "out")
    package = tmp_path / "out" / "model.mlpackage"
    # Read back, and judged by the device's numerics in mpsearch's own executor.
    on_device = mpsearch.Executor(package, Observed(rules))
    for sample in batches():
        with torch.no_grad():
            wanted = net().eval()(sample).numpy()
        (got,) = on_device.predict({"x": sample.numpy()}).values()
        assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) <= 1e-2
    here = mpsearch.optimize(net(), batches(), 1e-2, **options)
    assert len(here.kept) < len(found.kept)
    with pytest.raises(mpsearch.InputError, match="leave jobs"):
        mpsearch.Execution(backend="coreml", jobs=2)


def test_core_ml_that_fails_is_said_in_a_line(tmp_path, monkeypatch):
    out = tmp_path / "out"
    run("optimize", *MODEL, "--budget", "1e-2", "-o", out)
    standin.install(monkeypatch)

    def fails(self, data, state=None):
        raise RuntimeError("Failed to predict (-14)\nand more")

    monkeypatch.setattr(standin.CoreMLStandIn, "predict", fails)
    said = run("verify", out, *MODEL, expect=2)
    assert said.stderr.strip().endswith("Core ML cannot predict: Failed to predict (-14)")
    assert torch.is_grad_enabled()
