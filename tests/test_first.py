"""The command as people type it first: a model and a budget, and what is wrong with it."""

from __future__ import annotations

import contextlib
import io
import pickle
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import coremltools as ct
import numpy as np
import pytest
import torch
from torch import nn

import mpsearch
from mpsearch.cli.commands import main
from mpsearch.package.verification import read_back
from mpsearch.source.declared import declared_inputs
from mpsearch.source.drawing import within_tables
from mpsearch.source.loading import load_model
from mpsearch.source.prepare import prepare
from tests.command import run

OPENING = "No data given: drawn at random. Ranges on real data differ; see --inputs."


class Tokens(nn.Module):
    """(N, 7) ids below 300, a mask, and the lengths of the rows -> (N, 5)."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(300, 16), nn.Linear(16, 5)

    def forward(self, ids, mask, lengths):
        x = self.table(ids) * mask.unsqueeze(-1)
        return self.head(x.sum(1) / lengths.unsqueeze(-1))


class Picture(nn.Module):
    """(N, 3, H, W) -> (N, 4)"""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, image):
        return self.head(self.conv(image).relu().mean((2, 3)))


class Cached(nn.Module):
    """(1, 8) and a cache (1, 8) that the next call is given -> their sum through a layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, cache):
        new = torch.tanh(self.layer(x) + cache)
        return new * 2, new


def tokens():
    return torch.randint(0, 300, (1, 7)), torch.ones(1, 7), torch.full((1,), 7)


def example_inputs():
    return {"image": torch.rand(1, 3, 16, 16)}


def factory():
    torch.manual_seed(0)
    return Picture().eval()


def _package(path: Path, shape: tuple, **image) -> Path:
    traced = torch.jit.trace(factory(), torch.rand(1, 3, 16, 16))
    kind = ct.ImageType if image else ct.TensorType
    ct.convert(
        traced,
        inputs=[kind(name="image", shape=shape, **image)],
        compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=ct.target.iOS16,
        skip_model_load=True,
    ).save(str(path))
    return path


def _traced(path: Path, model: nn.Module, inputs, **more) -> Path:
    torch.manual_seed(0)
    torch.jit.trace(model.eval(), inputs, **more).save(str(path))
    return path


def _exported(path: Path, model: nn.Module, inputs) -> Path:
    torch.export.save(torch.export.export(model.eval(), inputs), path)
    return path


def _named(path: Path) -> Path:
    ids, mask, lengths = tokens()
    named = {"ids": ids, "mask": mask, "lengths": lengths}
    torch.jit.trace(Tokens().eval(), example_kwarg_inputs=named).save(str(path))
    return path


_SIZES = (1, 3, ct.RangeDim(8, 32, default=16), ct.RangeDim(8, 32, default=16))
FILES = {
    "traced": lambda at: _traced(at / "m.pt", Picture(), torch.rand(1, 3, 16, 16)),
    "tokens": lambda at: _traced(at / "m.pt", Tokens(), tokens()),
    "keywords": lambda at: _named(at / "m.pt"),
    "cache": lambda at: _traced(at / "m.pt", Cached(), (torch.rand(1, 8), torch.zeros(1, 8))),
    "exported": lambda at: _exported(at / "m.pt2", Picture(), (torch.rand(1, 3, 16, 16),)),
    "exported tokens": lambda at: _exported(at / "m.pt2", Tokens(), tokens()),
    "package": lambda at: _package(at / "m.mlpackage", (1, 3, 16, 16)),
    "flexible package": lambda at: _package(at / "m.mlpackage", _SIZES),
    "image package": lambda at: _package(at / "m.mlpackage", (1, 3, 16, 16), scale=1 / 255),
    "factory": lambda at: "tests.test_first:factory",
}


@pytest.mark.thorough
@pytest.mark.parametrize("kind", FILES)
def test_a_model_and_a_budget_are_enough(kind, tmp_path):
    done = run("optimize", FILES[kind](tmp_path), "--budget", "1e-2", "-o", tmp_path / "out")
    said = " ".join(done.stdout.split())
    assert said.startswith(OPENING)
    assert "Nothing is promised of real inputs" in said and "at least" not in said
    assert (tmp_path / "out" / "model.mlpackage").exists()


def test_integers_name_any_row_of_the_table_that_they_index(tmp_path):
    path = _traced(tmp_path / "m.pt", Tokens(), tokens())
    run("optimize", path, "--budget", "1e-2", "-o", tmp_path / "out")
    model = load_model(str(path))
    names, required, specs = declared_inputs(model, (), str(path))
    assert (names, required) == (["ids", "mask", "lengths"], 3)
    assert specs["ids"] == ((1, 7), torch.int64) and specs["mask"] == ((1, 7), torch.float32)
    from mpsearch.source.drawing import drawn

    data = drawn(specs, names, required, 16, 0, lambda unknown: mpsearch.InputError(str(unknown)))
    ids = torch.cat([s["ids"] for s in prepare(model, data).calibration.samples])
    assert ids.max() > 200 and ids.min() >= 0
    lengths = torch.cat([sample["lengths"] for sample in data.samples])
    assert lengths.min() >= 1 and lengths.max() <= 7
    again = within_tables(data, type("Empty", (), {"inputs": {}})(), 0)
    assert again is data


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 3)

    def forward(self, left, right):
        return self.first(left) + self.first(right)


def test_a_model_without_shapes_ends_in_a_line_that_works_when_it_is_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.jit.script(Scripted().eval()).save("m.pt")
    typed = ["mpsearch", "optimize", "m.pt", "--budget", "1e-2", "-o", "out"]
    monkeypatch.setattr(sys, "argv", typed)
    said = run(*typed[1:], expect=2).stderr
    pasted = shlex.split(said.partition("): ")[2])
    assert pasted[: len(typed)] == typed and "--shape" in pasted
    run(*pasted[1:])


def test_a_sample_of_another_shape_is_told_the_shape_that_the_file_has(tmp_path):
    path = _traced(tmp_path / "m.pt", Cached(), (torch.rand(1, 8), torch.zeros(1, 8)))
    first, second = [a.name for a in torch.jit.load(path).forward.schema.arguments][1:]
    np.savez(tmp_path / "x.npz", **{first: np.ones((4, 9), "f"), second: np.zeros((4, 8), "f")})
    said = run("optimize", path, "--inputs", tmp_path / "x.npz", "--budget", "1e-2", expect=2)
    assert f"({first} (1, 9), {second} (1, 8); the model's file has {first} (1, 8))" in said.stderr


def test_samples_that_lack_an_axis_are_refused(tmp_path):
    path = _traced(tmp_path / "m.pt", Picture(), torch.rand(1, 3, 16, 16))
    np.savez(tmp_path / "x.npz", image=np.ones((3, 16, 16), "f"))
    said = run("optimize", path, "--inputs", tmp_path / "x.npz", "--budget", "1e-2", expect=2)
    assert "give an array of shape (samples, 3, 16, 16)" in said.stderr


class Depth(nn.Module):
    """(1, 8) -> one over values near 0.05, to which coremltools adds 1e-4."""

    def forward(self, x):
        return 1.0 / (0.05 + 0.01 * torch.sigmoid(x))


def test_what_the_conversion_takes_of_the_budget_is_said():
    draw = torch.Generator().manual_seed(0)
    samples = [torch.randn(1, 8, generator=draw) for _ in range(6)]
    found = mpsearch.optimize(Depth(), samples, 1e-2)
    said = [note for note in found.notes if "converted program differs" in note]
    assert found.met and len(said) == 1 and "torch.ones_like(x) / x" in said[0]
    assert f"already {found.error_fp32:.3g}" in said[0]


def test_nothing_of_the_record_of_traced_inputs_is_run(tmp_path):
    path = _traced(tmp_path / "m.pt", Picture(), torch.rand(1, 3, 16, 16))

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    hostile = tmp_path / "hostile.pt"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(hostile, "w") as out:
        for info in archive.infolist():
            body = archive.read(info)
            if info.filename.endswith("traced_inputs.pkl"):
                body = pickle.dumps({"forward": [Evil()]}, protocol=2)
            out.writestr(info, body)
    model = load_model(str(path))
    assert declared_inputs(model, (), str(hostile)) == (["image"], 1, {})
    assert not (tmp_path / "touched").exists()


def test_what_is_wrong_with_what_was_typed_comes_before_torch_is_loaded(tmp_path):
    """In one process without torch: 14 commands, each a line that says what to type."""
    (tmp_path / "m.pt").write_bytes(b"")
    expected = {
        "optimize nofile.pt --budget 1e-3": "nofile.pt does not exist; give a model file",
        "nofile.pt --budget 1e-3": "nofile.pt does not exist; give a model file",
        "optimize m.pt --budget x": "'x' is no number; give one such as 0.001 or 0.1%",
        "optimize m.pt": "Missing option '--budget'",
        "optimize m.pt --budget -1": "expected a number above 0",
        "optimize m.pt --budgt 1": "Did you mean",
        "optimize m.pt --tolerance 1e-3": "it is called --budget here",
        "optimize m.pt --budget 1 --output x": "it is called --out here",
        "optimize m.pt --budget 1 --minimum-deployment-target iOS17": "it is called --target here",
        "optimize m.pt --budget 1 --inputs no.npz": "no.npz does not exist",
        "optimize m.pt --budget 1 --metric l3": "metric 'l3' is not known; choose from rel_l2",
        "optimize m.pt --budget 1 --keep-fp32 x": "expected 'type:softmax'",
        "optimize m.pt --budget 1 --coverage 95": "above 0 and below 1; 95% is 0.95",
        "optimize m.pt --budget 1 --random 0": "--random is 0, expected a whole number",
    }
    code = (
        "import contextlib, io, json, sys\n"
        "from mpsearch.cli.commands import main\n"
        "for typed in json.loads(sys.argv[1]):\n"
        "    err = io.StringIO()\n"
        "    with contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):\n"
        "        main(typed.split())\n"
        "    print(err.getvalue().strip())\n"
        "assert 'torch' not in sys.modules and 'coremltools' not in sys.modules"
    )
    import json

    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(list(expected))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(expected)
    for line, words in zip(lines, expected.values(), strict=True):
        assert words in line


def test_a_percentage_is_a_budget_and_a_model_a_command(tmp_path):
    path = _traced(tmp_path / "m.pt", Picture(), torch.rand(1, 3, 16, 16))
    run(path, "--budget", "1%", "-o", tmp_path / "out")
    assert '"budget": 0.01' in (tmp_path / "out" / "result.json").read_text()


def test_a_path_to_samples_is_taken_from_python(tmp_path):
    values = np.random.default_rng(0).standard_normal((6, 3, 16, 16)).astype("f4")
    np.savez(tmp_path / "samples.npz", image=values)
    by_path = mpsearch.optimize(factory(), tmp_path / "samples.npz", 1e-2)
    by_list = mpsearch.optimize(factory(), [torch.tensor(v)[None] for v in values], 1e-2)
    assert by_path.error == by_list.error


def test_an_internal_fault_has_an_exit_code_of_its_own(monkeypatch):
    def fault(*_):
        raise ValueError("never")

    monkeypatch.setattr("mpsearch.cli.early.check", fault)
    with contextlib.redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as ended:
        main(["optimize", "m.pt", "--budget", "1"])
    assert ended.value.code == 4 and err.getvalue().startswith("defect: ValueError: never")


def test_help_fits_a_screen_and_all_of_it_names_every_option(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = run("optimize", "--help").stdout
    assert len(said.splitlines()) <= 40
    assert "--budget" in said and "--cache-bytes" not in said and "--help-all" in said
    assert "mpsearch optimize model.pt --budget 1e-3" in said
    for name, command in main.commands.items():
        whole = run(name, "--help-all" if len(command.params) > 9 else "--help").stdout
        options = [
            p for p in command.params if isinstance(p, click.Option) and p.name != "help_all"
        ]
        assert all(any(option in whole for option in p.opts) for p in options)
        assert all(p.help for p in options), name
        assert "Other:" not in whole or set(_others(whole)) <= {"-h,", "--help-all"}, name


def _others(said: str) -> list[str]:
    lines = said.partition("Other:\n")[2].splitlines()
    return [line.split()[0] for line in lines if line.startswith("  -")]


def test_an_op_selector_for_another_model_raises(tmp_path):
    """Its ops would be FP16 otherwise, without a word."""
    run(
        "optimize", "tests.test_first:factory", "--budget", "1e-2", "--keep-fp32", "type:conv",
        "-o", tmp_path / "out",
    )  # fmt: skip
    made = {"__name__": "op_selector"}
    exec((tmp_path / "out" / "op_selector.py").read_text(), made)
    made["convert"](made["trace"](factory(), (torch.rand(1, 3, 16, 16),)))

    class Other(nn.Module):
        def forward(self, image):
            return image.exp()

    with pytest.raises(ValueError, match="1 of 1 FP32 ops are not in the model"):
        made["convert"](made["trace"](Other(), (torch.rand(1, 3, 16, 16),)))


def test_an_op_selector_finds_its_ops_under_other_names(tmp_path):
    """A layer that was renamed has the same ops in the same places."""

    class Named(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.add_module(f"{name}_first", nn.Linear(4, 4))
            self.add_module(f"{name}_then", nn.Linear(4, 4))

        def forward(self, x):
            first, then = self.children()
            return then(first(x).exp())

    samples = [torch.randn(1, 4) for _ in range(4)]
    found = mpsearch.optimize(
        Named("old").eval(),
        samples,
        1.0,
        constraints=mpsearch.Constraints(keep_fp32=["layer:old_then"]),
    )
    found.save(tmp_path / "out")
    made = {"__name__": "op_selector"}
    exec((tmp_path / "out" / "op_selector.py").read_text(), made)
    package = made["convert"](made["trace"](Named("new").eval(), (samples[0],)))
    package.save(str(tmp_path / "new.mlpackage"))
    kept = read_back(tmp_path / "new.mlpackage").fp32_ops
    assert [kind for kind, _ in kept] == ["linear"] and len(found.fp32_ops) == 1


def test_targets_beside_a_path_of_samples_may_be_values(tmp_path):
    values = np.random.default_rng(0).standard_normal((6, 3, 16, 16)).astype("f4")
    np.savez(tmp_path / "samples.npz", image=values)

    def agreement(outputs, targets):
        picked = [next(iter(one.values())).argmax() for one in outputs]
        return float(np.mean([a == b for a, b in zip(picked, targets, strict=True)]))

    targets = [0, 1, 2, 3, 0, 1]
    found = mpsearch.optimize(
        factory(), str(tmp_path / "samples.npz"), 0.5, agreement, targets=targets
    )
    assert found.met and "each with a target" in found.understood


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(8, 8, batch_first=True)

    def forward(self, x):
        return self.gru(x)[0] + (x > 0) * -1e9


def test_what_coremltools_never_casts_is_named_and_loops_are_not():
    samples = [torch.randn(1, 4, 8) for _ in range(4)]
    notes = " ".join(mpsearch.optimize(Masked().eval(), samples, 1e-2).notes)
    assert "coremltools leaves" in notes and "while_loop" not in notes


def test_options_are_named_as_who_asks_has_them(tmp_path):
    samples = [torch.rand(1, 3, 16, 16) for _ in range(4)]
    half = mpsearch.Conversion(target="iOS15", io_dtype="fp16")
    with pytest.raises(mpsearch.InputError) as raised:
        mpsearch.optimize(factory(), samples, 1e-2, conversion=half)
    assert 'Conversion(io_dtype="fp16") needs Conversion(target="iOS16")' in str(raised.value)
    said = run(
        "optimize", "tests.test_first:factory", "--budget", "1e-2", "--target", "iOS15",
        "--io-dtype", "fp16", "-o", tmp_path / "out", expect=2,
    )  # fmt: skip
    assert "--io-dtype fp16 needs --target iOS16" in said.stderr


def test_a_change_that_changes_nothing_is_said(tmp_path):
    samples = [torch.rand(1, 3, 16, 16) for _ in range(4)]
    found = mpsearch.optimize(
        factory(), samples, 1e-2, conversion=mpsearch.Conversion(rewrite=True)
    )
    said = "Conversion(rewrite=True) changed nothing: FP16 meets the budget without."
    assert said in found.notes


def test_ops_kept_for_their_layer_say_so():
    class Layer(nn.Module):
        def forward(self, x):
            return (x * 3e4).exp().log() + x.sin()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = Layer(), nn.Linear(4, 4)

        def forward(self, x):
            return self.head(self.inner(x))

    samples = [torch.rand(1, 4) * 5e-4 + 2e-4 for _ in range(4)]
    whole = mpsearch.Constraints(by="layer")
    found = mpsearch.optimize(Model().eval(), samples, 0.1, constraints=whole)
    reasons = {op.type: op.verdict for op in found.kept}
    assert reasons["sin"] == "layer" and set(reasons.values()) != {"layer"}
