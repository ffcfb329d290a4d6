"""Files and samples as people have them: what torch wrote in any format, of any shape and kind."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mpsearch
from mpsearch._ct import ct, quiet
from mpsearch.source.loading import load_model
from mpsearch.source.prepare import prepare
from tests.command import run
from tests.models import net

# --- TorchScript ------------------------------------------------------------------------------


class Divides(nn.Module):
    """Writes a file of format 8 (``linspace``); below 4, division of integers truncates."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, pos):
        return self.linear(x) * torch.sin(pos / torch.tensor(7)) + torch.linspace(0, 1, 4)


class Gelu(nn.Module):
    """Writes a file of format 10; those below have no ``approximate``."""

    def forward(self, x, pos):
        return F.gelu(x, approximate="tanh") * pos


def traced(model, example, path="model.pt"):
    torch.jit.save(torch.jit.trace(model.eval(), example), path)
    return path


def versions(path):
    """What a file says of its format, by record."""
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        wanted = [name for name in ("version", ".data/version") if name in names]
        return {name: int(archive.read(names[name])) for name in wanted}


@pytest.mark.parametrize(("model", "version"), [(Divides(), 8), (Gelu(), 10), (net(), 3)])
def test_a_file_is_read_as_torch_reads_it(model, version, tmp_path, monkeypatch):
    """torch writes the version to ``.data/version`` from 6 on, and takes files without one for old
    ones, whose ops it upgrades."""
    monkeypatch.chdir(tmp_path)
    example = (torch.randn(1, 4), torch.arange(4)[None])
    example = (torch.randn(1, 4, 8),) if version == 3 else example
    path = traced(model, example)
    assert list(versions(path).values()) == [version]
    assert ("version" in versions(path)) == (version < 6)
    mine, theirs = load_model(path), torch.jit.load(path)
    assert torch.equal(mine(*example), theirs(*example))


def rewritten(path, change):
    """A copy of an archive with records changed: ``change`` takes and gives name and content."""
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile("changed.pt", "w") as out:
        for name, body in entries:
            out.writestr(*change(name, body))
    return "changed.pt"


@pytest.mark.parametrize(
    ("version", "says"),
    [(b"0", "version 0"), (b"11", "version 11"), (b"x", "one number in .data/version or version")],
)
def test_a_format_that_torch_does_not_write_is_refused(version, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = traced(Gelu(), (torch.randn(1, 4), torch.arange(4)[None]))
    path = rewritten(path, lambda n, b: (n, version if n.endswith(".data/version") else b))
    with pytest.raises(mpsearch.InputError, match=says):
        load_model(path)


def test_two_versions_that_disagree_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = traced(Gelu(), (torch.randn(1, 4), torch.arange(4)[None]))
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/version", "3\n")
    with pytest.raises(mpsearch.InputError, match="2 times, expected one number"):
        load_model(path)


class Mlp(nn.Module):
    def __init__(self, several):
        super().__init__()
        self.i, self.g, self.u = nn.Linear(16, 16), nn.Linear(16, 32), nn.Linear(16, 32)
        self.d, self.w = nn.Linear(32, 16), nn.Parameter(torch.ones(16))
        self.several = several

    def forward(self, x):
        h = self.i(x) * 400
        h = h * torch.rsqrt(torch.mean(h * h, -1, keepdim=True) + 1e-6) * self.w
        out = self.d(F.silu(self.g(h)) * self.u(h))
        return (out, h.abs().amax(-1)) if self.several else out


@pytest.mark.parametrize("several", [False, True])
def test_layers_of_a_file_are_those_of_the_module(several, tmp_path, monkeypatch):
    """With a parameter of the module itself, and with one output or a tuple of them."""
    monkeypatch.chdir(tmp_path)
    x = torch.randn(1, 4, 16)
    path = traced(Mlp(several), (x,))
    layers = {op.layer for op in prepare(path, [x, x]).ops if op.layer}
    assert layers == {"i", "g", "u", "d"}


def test_a_package_named_like_torch_is_the_users():
    """Lines are of the innermost code that is not torch's; ``torchfcpe`` stands beside torch."""
    file = f"{Path(torch.__file__).parent}fcpe/__init__.py"
    names = {}
    exec(compile("def double(x):\n    return x * 2 + x\n", file, "exec"), names)

    class Model(nn.Module):
        def forward(self, x):
            return names["double"](x)

    lines = {op.line for op in prepare(Model(), [torch.randn(1, 4)]).ops}
    assert lines == {"torchfcpe/__init__.py:2"}


# --- samples ----------------------------------------------------------------------------------


class Scalars(nn.Module):
    """A rank-0 integer that is below 0, or large."""

    def forward(self, x, pos):
        first = pos.sum() - 16
        return x * first


@pytest.mark.parametrize("value", [0, 1 << 20])
def test_scalar_integers_of_any_value_are_evaluated(value):
    samples = [{"x": torch.randn(1, 4), "pos": torch.full((1, 4), value)} for _ in range(4)]
    result = mpsearch.optimize(Scalars(), samples, 1e-2)
    assert result.met or result.status == "infeasible"


def flexible(shape):
    with quiet():
        return mpsearch.convert(
            nn.Linear(4, 4), torch.randn(1, 8, 4), inputs=[ct.TensorType("input", shape=shape)]
        )


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (ct.EnumeratedShapes([(1, 8, 4), (1, 16, 4)]), "not in enumerated set"),
        ((1, ct.RangeDim(1, 16, 8), 4), r"not in allowed range \(1\.\.16\)"),
        ((1, 8, 4), r"the package takes \(1, 8, 4\)"),
    ],
)
def test_samples_have_shapes_that_the_package_declares(shape, says):
    model, good = flexible(shape), torch.randn(1, 8, 4)
    assert mpsearch.optimize(model, [good, good + 1], 1e-2).met
    with pytest.raises(mpsearch.InputError, match=f"sample 1: input 'input'.*{says}"):
        mpsearch.optimize(model, [good, torch.randn(1, 40, 4)], 1e-2)


def test_the_summary_says_all_lengths():
    data = [torch.randn(1, n, 4) for n in (8, 13, 24, 9)]
    result = mpsearch.optimize(nn.Linear(4, 4), data, 1e-2)
    assert "(1, 8 to 24, 4)" in result.summary()


def test_a_package_with_several_functions_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    described = ct.utils.MultiFunctionDescriptor()
    for name in ("first", "second"):
        flexible((1, 8, 4)).save(f"{name}.mlpackage")
        described.add_function(f"{name}.mlpackage", "main", name)
    described.default_function_name = "first"
    with quiet():
        ct.utils.save_multifunction(described, "both.mlpackage")
    np.savez("x.npz", input=np.zeros((4, 8, 4), np.float32))
    said = run("optimize", "both.mlpackage", "--inputs", "x.npz", "--budget", "1e-2", expect=2)
    assert "several functions (first, second)" in said.stderr


class Gathers(nn.Module):
    """Integers that need more than 16 bits after a gather (int32 input, iOS17)."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("places", torch.tensor([0, 3, 5, 7, 40000, 2, 1, 4]))

    def forward(self, x, n):
        first, second = n.index_select(1, self.places), n.index_select(1, self.places + 1)
        return self.linear(x) + (first + second).float()


def test_integers_that_coremltools_makes_too_small_are_named():
    """``add_int16_cast`` of coremltools 9.0 turns -4 into 65532; iOS16 has no such casts."""
    generator = torch.Generator().manual_seed(0)
    data = [
        {
            "x": torch.randn(1, 8, generator=generator),
            "n": torch.randint(-9, 9, (1, 40100), generator=generator),
        }
        for _ in range(3)
    ]
    with pytest.raises(mpsearch.InputError, match="add_int16_cast casts integers to 16 bits"):
        mpsearch.optimize(Gathers(), data, 1e-2)
    older = mpsearch.Conversion(target="iOS16")
    assert mpsearch.optimize(Gathers(), data, 1e-2, conversion=older).met


class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, *, x, scale=None):
        out = self.linear(x)
        return out if scale is None else out * scale


def test_arguments_may_be_by_name_only():
    data = [{"x": torch.randn(1, 4)} for _ in range(4)]
    assert mpsearch.optimize(ByName(), data, 1e-2).met
    assert mpsearch.optimize(ByName(), [s | {"scale": torch.ones(1, 4)} for s in data], 1e-2).met


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.eye(4).to_sparse(), "is a sparse tensor"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "is a nested tensor"),
        (torch.ones(1, 4, dtype=torch.complex64), "takes real numbers"),
    ],
)
def test_tensors_of_other_kinds_are_refused_by_kind(value, says):
    with pytest.raises(mpsearch.InputError, match=says):
        mpsearch.optimize(nn.Linear(4, 4), [value, value], 1e-2)


class Items(torch.utils.data.Dataset):
    def __init__(self, broken=False):
        self.broken = broken

    def __len__(self):
        return 6

    def __getitem__(self, i):
        if self.broken and i == 3:
            raise ValueError("picture 3 is broken")
        return torch.randn(4)  # as augmentation draws


def test_a_loader_leaves_the_random_state_and_draws_items_that_differ():
    model = nn.Linear(4, 4)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    loader = torch.utils.data.DataLoader(Items(), batch_size=2, shuffle=True)
    prepared = prepare(model, loader)
    assert torch.equal(before, torch.get_rng_state())
    drawn = torch.stack([next(iter(s.values())) for s in prepared.calibration.samples])
    assert len(drawn.unique(dim=0)) == len(drawn)


def test_what_a_loaders_worker_raises_is_said_without_its_traceback():
    loader = torch.utils.data.DataLoader(Items(broken=True), num_workers=1)
    with pytest.raises(mpsearch.InputError, match="picture 3 is broken") as caught:
        mpsearch.optimize(nn.Linear(4, 4), loader, 1e-2)
    assert "Traceback" not in str(caught.value)


@pytest.mark.thorough
def test_outputs_in_fp16_are_rounded_in_any_profile(tmp_path):
    torch.manual_seed(0)
    model, data = nn.Linear(64, 64).eval(), [torch.randn(1, 64) for _ in range(4)]
    half = mpsearch.Conversion(io_dtype="fp16")
    result = mpsearch.optimize(model, data, 1e-2, numerics="wide", heldout=0.0, conversion=half)
    result.save(tmp_path / "out")
    executor = mpsearch.Executor(str(tmp_path / "out" / "model.mlpackage"), numerics="wide")
    errors = []
    for x in data:
        (y,) = executor.predict({"input": x}).values()
        wanted = model(x).detach().double().numpy()
        errors.append(np.linalg.norm(y - wanted) / np.linalg.norm(wanted))
    assert result.error == pytest.approx(max(errors), rel=1e-6)


@pytest.mark.thorough
def test_a_factory_that_changes_the_directory_moves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "moving.py").write_text(
        "import os, torch\n"
        "def build():\n    os.chdir('elsewhere')\n    return torch.nn.Linear(4, 4)\n"
        "def data():\n    return [torch.randn(1, 4) for _ in range(4)]\n"
    )
    command = [sys.executable, "-m", "mpsearch", "optimize", "moving:build", "--budget", "1e-2"]
    command += ["--inputs", "moving:data", "--out", "out"]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "out" / "model.mlpackage").is_dir()
    assert not list((tmp_path / "elsewhere").iterdir())
