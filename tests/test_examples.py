"""Every example in a small form: budget, package read back, generated op_selector."""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import mpsearch
from mpsearch.package.verification import read_back
from tests.packages import contents

NAMES = [
    "complex_division",
    "conv_transpose",
    "digits",
    "efficientvit",
    "half_activations",
    "llama",
    "minilm",
    "resnet18",
    "stylegan2",
]
OVERFLOWING = {"complex_division", "llama", "minilm", "stylegan2", "digits"}
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", params=NAMES)
def example(request, tmp_path_factory):
    module = importlib.import_module(f"examples.{request.param}")
    model, data = module.build(small=True), module.samples(small=True)
    metric, targets = getattr(module, "METRIC", "rel_l2"), getattr(module, "TARGETS", None)
    result = mpsearch.optimize(
        model, data, module.BUDGET, metric, targets=targets, limits=mpsearch.Limits(trials=120)
    )
    out = tmp_path_factory.mktemp(request.param) / "mixed"
    result.save(out)
    return request.param, module, model, data, result, out


@pytest.mark.thorough
def test_budget_met_on_calibration_and_heldout(example):
    name, module, *_, result, _ = example
    assert result.met
    assert result.error <= module.BUDGET
    assert result.heldout_error <= module.BUDGET
    if name in OVERFLOWING:
        assert not result.error_fp16 < 0.1
        assert 0 < len(result.fp32_ops) < result.candidate_ops
    if name == "resnet18":
        assert result.status == "fp16_suffices"


def test_the_error_as_read_back_is_within_the_budget(example):
    *_, result, _ = example
    assert result.error <= result.budget


@pytest.mark.thorough
def test_written_package_meets_the_budget(example):
    """Measured here, from the file, by the executor alone against PyTorch."""
    _, module, model, data, _, out = example
    metric = getattr(module, "METRIC", "rel_l2")
    if callable(metric):
        pytest.skip("measured by its own metric")
    model = copy.deepcopy(model).eval()
    executor = mpsearch.Executor(str(out / "model.mlpackage"))
    for sample in data:
        named = sample if isinstance(sample, dict) else {None: sample}
        tensors = list(named.values())
        with torch.no_grad():
            wanted = model(**sample) if isinstance(sample, dict) else model(sample)
        names = list(executor.input_ranks())
        got = executor.predict(dict(zip(names, (t.numpy() for t in tensors), strict=True)))
        (array,) = got.values()
        difference = array - wanted.numpy()
        error = np.linalg.norm(difference) / np.linalg.norm(wanted.numpy())
        assert (abs(difference).max() if metric == "max_abs" else error) <= module.BUDGET


@pytest.mark.thorough
def test_op_selector_alone_gives_the_same_fp32_ops(example, tmp_path):
    name, *_, out = example
    alone, ours = read_back(by_itself(name, out, tmp_path)), read_back(out / "model.mlpackage")
    assert _named(alone.fp32_ops) == _named(ours.fp32_ops)
    assert _named(alone.fp16_ops) == _named(ours.fp16_ops)


def by_itself(name, out, folder):
    """The package made in a process that does not have mpsearch (examples import a stub of it)."""
    package = folder / "alone.mlpackage"
    script = f"""
        import sys, types
        sys.modules["mpsearch"] = types.ModuleType("mpsearch")
        sys.path[:0] = [{str(ROOT)!r}, {str(out)!r}]
        import importlib, torch
        torch.set_num_threads({torch.get_num_threads()})  # what is trained depends on it
        module = importlib.import_module("examples.{name}")
        sample = module.samples(small=True)[0]
        while isinstance(sample, tuple):
            sample = sample[0]
        inputs = tuple(sample.values()) if isinstance(sample, dict) else (sample,)
        import op_selector
        traced = op_selector.trace(module.build(small=True).float().eval(), inputs)
        op_selector.convert(traced).save({str(package)!r})
        assert not hasattr(sys.modules["mpsearch"], "optimize")
    """
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    return package


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted(OVERFLOWING))
def test_rescale_alone_gives_the_same_package(name, tmp_path):
    """Op for op, constants to the bit; and no op stays FP32."""
    module = importlib.import_module(f"examples.{name}")
    task = {"metric": getattr(module, "METRIC", "rel_l2")}
    result = mpsearch.optimize(
        module.build(small=True),
        module.samples(small=True),
        module.BUDGET,
        targets=getattr(module, "TARGETS", None),
        heldout=0.0,
        conversion=mpsearch.Conversion(rescale="insert", rewrite=True),
        **task,
    )
    assert result.met and not result.kept
    out = tmp_path / "out"
    result.save(out)
    assert (out / "rescale.py").exists()
    assert contents(by_itself(name, out, tmp_path)) == contents(out / "model.mlpackage")


def _named(ops):
    """Without the numbers of transposes, which coremltools gives anew in every conversion."""
    return [(kind, None if kind == "transpose" else name) for kind, name in ops]


@pytest.mark.thorough
def test_training_script(tmp_path):
    from examples import training

    done = training.run(rounds=2, steps=40, out=str(tmp_path / "digits.mlpackage"))
    assert (tmp_path / "digits.mlpackage").exists()
    assert done[0].startswith("searched")
    assert len(done) == 2
