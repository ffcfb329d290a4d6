"""Files and names that come from elsewhere: nothing of them is run, none is read outside itself.

Every attack leaves a marker file where it succeeds; the same attack with ``--allow-pickle`` shows,
where torch honours it, that the attack is one.
"""

from __future__ import annotations

import ast
import io
import json
import multiprocessing
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import mpsearch
from benchmarks.models import named
from mpsearch.ending import Ending
from mpsearch.executor.predict import Executor
from mpsearch.flows.request import Request
from mpsearch.flows.running import run as answer
from mpsearch.report import text
from mpsearch.source.loading import load_model
from tests.command import run
from tests.models import Cache, Mixed, TwinBlocks, batches, net

NET = "tests.models:net"
DATA = "tests.models:batches"


def run_any(*arguments: object):
    return run(*arguments, expect=None)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", x=torch.cat(batches()).numpy())
    return tmp_path


# --- .pt2 ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """The entries of an ordinary ``.pt2`` with a flexible batch, by name."""
    x = batches()[0]
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(net().eval(), (torch.cat([x, x]),), dynamic_shapes=({0: batch},))
    file = tmp_path_factory.mktemp("exported") / "good.pt2"
    torch.export.save(program, file)
    with zipfile.ZipFile(file) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def touch(marker):
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


class _Touch:
    """Unpickling it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


def _edit(entries, change, suffix="models/model.json"):
    """The entries with the JSON of one of them changed."""
    out = []
    for name, body in entries:
        if name.endswith(suffix):
            content = json.loads(body)
            change(content)
            body = json.dumps(content).encode()
        out.append((name, body))
    return out


def _root(entries):
    return entries[0][0].partition("/")[0]


def _pickle(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _expressions(value):
    """Every dict that holds a shape expression."""
    if isinstance(value, dict):
        if "expr_str" in value:
            yield value
        for inner in value.values():
            yield from _expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _expressions(inner)


def _nodes(program):
    return program["graph_module"]["graph"]["nodes"]


def guards(entries, marker):
    return _edit(entries, lambda p: p.update(guards_code=[f"{touch(marker)} or True"]))


def library(entries, marker):
    return [*entries, (f"{_root(entries)}/data/aotinductor/model/x.so", b"\x7fELF")]


def expression(entries, marker):
    def change(program):
        for place in _expressions(program):
            place["expr_str"] = f"{touch(marker)} or {place['expr_str']}"

    return _edit(entries, change)


def expression_escaped(entries, marker):
    """The key and the value spelled with JSON's escapes, which no search of the text finds."""
    out = []
    for name, body in entries:
        if name.endswith("models/model.json"):
            code = "".join(f"\\u{ord(c):04x}" for c in f"{touch(marker)} or ")
            text = body.decode().replace('"expr_str": "', f'"\\u0065xpr_str": "{code}')
            assert text != body.decode()
            body = text.encode()
        out.append((name, body))
    return out


def expression_of_attributes(entries, marker):
    def change(program):
        for place in _expressions(program):
            place["expr_str"] = "Symbol('s0').__class__.__base__.__subclasses__()"

    return _edit(entries, change)


def entry_twice(entries, marker):
    """zipfile reads the last of two entries with one name, torch's reader the first."""
    bad = expression(entries, marker)
    return [pair for pair in bad if pair[0].endswith("model.json")] + list(entries)


def weights_pickled(entries, marker):
    def change(config):
        for entry in config["config"].values():
            entry["use_pickle"] = True

    changed = _edit(entries, change, "model_weights_config.json")
    body = _pickle(_Touch(marker))
    return [(n, body if "/data/weights/weight_" in n else b) for n, b in changed]


def samples_pickled(entries, marker):
    body = _pickle(_Touch(marker))
    return [(n, body if n.endswith("sample_inputs/model.pt") else b) for n, b in entries]


def constants_pickled(entries, marker):
    changed = _edit(
        entries,
        lambda c: c["config"].update(
            evil={
                "path_name": "custom_obj_0",
                "is_param": False,
                "use_pickle": True,
                "tensor_meta": None,
            }
        ),
        "model_constants_config.json",
    )
    return [*changed, (f"{_root(entries)}/data/constants/custom_obj_0", _pickle(_Touch(marker)))]


def any_function(entries, marker):
    def change(program):
        _nodes(program)[0]["target"] = "torch.os.system"
        _nodes(program)[0]["inputs"] = [
            {"name": "", "arg": {"as_string": f"touch {marker}"}, "kind": 1}
        ]

    return _edit(entries, change)


def file_op(entries, marker):
    def change(program):
        _nodes(program)[0]["target"] = "torch.ops.aten.from_file.default"

    return _edit(entries, change)


def argument_name(entries, marker):
    """Names of values stand in the Python that torch generates of a graph."""
    name = f"x={touch(marker)}"
    out = []
    for entry, body in entries:
        if entry.endswith("models/model.json"):
            first = json.loads(body)["graph_module"]["signature"]["input_specs"]
            old = next(
                s["user_input"]["arg"]["as_tensor"]["name"] for s in first if "user_input" in s
            )
            body = body.replace(json.dumps(old).encode(), json.dumps(name).encode())
        out.append((entry, body))
    return out


def tree_of_enum(entries, marker):
    def change(program):
        for call in program["graph_module"]["module_call_graph"]:
            if call.get("signature"):
                context = {"__enum__": True, "fqn": "os.path", "name": "sep"}
                call["signature"]["in_spec"] = json.dumps(
                    [
                        1,
                        {
                            "type": "builtins.dict",
                            "context": json.dumps([context]),
                            "children_spec": [],
                        },
                    ]
                )

    return _edit(entries, change)


def tree_of_defaultdict(entries, marker):
    def change(program):
        for call in program["graph_module"]["module_call_graph"]:
            if call.get("signature"):
                context = {
                    "default_factory_module": "subprocess",
                    "default_factory_name": "Popen",
                    "dict_context": [],
                }
                call["signature"]["in_spec"] = json.dumps(
                    [
                        1,
                        {
                            "type": "collections.defaultdict",
                            "context": json.dumps(context),
                            "children_spec": [],
                        },
                    ]
                )

    return _edit(entries, change)


def argument_keys(entries, marker):
    """Keys of keyword arguments become source text where the names of arguments are left out."""
    code = f"str({touch(marker)})"

    def change(program):
        for call in program["graph_module"]["module_call_graph"]:
            if call.get("signature"):
                call["signature"]["forward_arg_names"] = None
                protocol, spec = json.loads(call["signature"]["in_spec"])
                spec["children_spec"][1]["context"] = json.dumps(["a='", f'\'+{code}+"x"'])
                call["signature"]["in_spec"] = json.dumps([protocol, spec])

    return _edit(entries, change)


def globals_of_an_op(entries, marker):
    def change(program):
        _nodes(program)[0]["target"] = "torch.ops.aten.__getattr__.__globals__"

    return _edit(entries, change)


ATTACKS = [
    *(argument_keys, globals_of_an_op),
    *(library, expression, expression_escaped, expression_of_attributes),
    *(entry_twice, weights_pickled, samples_pickled, constants_pickled, any_function, file_op),
    *(argument_name, tree_of_enum, tree_of_defaultdict),
]


def _store(path, entries):
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, body in entries:
            archive.writestr(name, body)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_exported_program_with_code_in_it_is_refused(attack, exported, here):
    marker = here / "ran"
    _store("bad.pt2", attack(exported, marker))
    for command in (["optimize", "bad.pt2", "--budget", "1"], ["analyze", "bad.pt2"]):
        outcome = run_any(*command, "--inputs", "x.npz")
        assert outcome.exit_code == 2, outcome.output
        assert outcome.stderr.count("\n") == 1 and "--allow-pickle" in outcome.stderr
        assert not marker.exists() and not Path("mpsearch_out").exists()


def test_guards_are_dropped(exported, here):
    """``ExportedProgram.module()`` compiles them; nothing depends on them."""
    marker = here / "ran"
    _store("bad.pt2", guards(exported, marker))
    program = load_model("bad.pt2")
    program.module()
    assert program._guards_code == [] and not marker.exists()


@pytest.mark.thorough
@pytest.mark.parametrize("attack", [guards, expression, argument_keys])
def test_the_attacks_are_attacks(attack, exported, here):
    """Without the check the file runs its code: what is refused above is not harmless."""
    marker = here / "ran"
    _store("bad.pt2", attack(exported, marker))
    code = (
        "import torch\np = torch.export.load('bad.pt2')\nm = p.module()\nm(torch.zeros(2, 4, 8))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=300)
    assert marker.exists()


def _ten():
    """Ten architectures, with the inputs they are exported for."""
    import transformers as t

    x = batches()[0]
    for name in ("resnet-50", "vit-12", "decoder-6"):
        model, sample = named(name)
        yield name, model, (sample,)
    yield "norm_and_head", net(), (x,)
    yield "twin_blocks", TwinBlocks(), (torch.randn(2, 4),)
    yield "half_parts", Mixed(), (torch.randn(2, 8),)
    yield "buffers", Cache(), (torch.randn(1, 1, 8),)
    ids = torch.ones(1, 8, dtype=torch.long)
    small = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    bert = t.BertConfig(**small, intermediate_size=32, vocab_size=50, attn_implementation="eager")
    yield "bert", t.BertModel(bert), (ids,)
    gpt2 = t.GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=50, use_cache=False, attn_implementation="eager"
    )
    yield "gpt2", t.GPT2LMHeadModel(gpt2), (ids,)
    llama = t.LlamaConfig(
        **small, intermediate_size=32, vocab_size=50, use_cache=False, attn_implementation="eager"
    )
    yield "llama", t.LlamaForCausalLM(llama), (ids,)


@pytest.mark.thorough
def test_ordinary_exported_programs_of_ten_architectures_load_without_a_flag(tmp_path):
    loaded = []
    for name, model, given in _ten():
        torch.manual_seed(0)
        program = torch.export.export(model.eval(), given)
        torch.export.save(program, tmp_path / f"{name}.pt2")
        again = load_model(str(tmp_path / f"{name}.pt2"))
        with torch.no_grad():
            expected, got = program.module()(*given), again.module()(*given)
        flat = torch.utils._pytree.tree_leaves
        for a, b in zip(flat(expected), flat(got), strict=True):
            assert not isinstance(a, torch.Tensor) or torch.equal(a, b)
        loaded.append(name)
    assert len(loaded) >= 10


class WritesInForward(torch.nn.Module):
    def forward(self, x):
        torch.save(x, "ran")
        return x * 2


class WritesWhenLoaded(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.training = False
        self.scale = torch.ones(1)

    @torch.jit.export
    def __getstate__(self):
        return (self.scale, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.scale, self.training = state
        self.tell()

    @torch.jit.export
    def tell(self):
        torch.save(self.scale, "ran")

    def forward(self, x):
        return x * self.scale


class WritesWhenForked(torch.nn.Module):
    def forward(self, x):
        return torch.jit.wait(torch.jit.fork(_write, x)) * 2


def _write(x: torch.Tensor) -> torch.Tensor:
    torch.save(x, "ran")
    return x


class Prints(torch.nn.Module):
    def forward(self, x):
        print("\x1b]0;title\x07")
        return x * 2


REFUSED = "pass --allow-pickle if you trust"


@pytest.mark.parametrize(
    "model", [WritesInForward(), WritesWhenLoaded(), WritesWhenForked(), Prints()]
)
def test_torchscript_that_does_more_than_compute_is_refused(model, here, capfd):
    """``aten::save`` is an op like any other to TorchScript."""
    torch.jit.save(torch.jit.script(model), "writes.pt")
    Path("ran").unlink(missing_ok=True)
    outcome = run_any("optimize", "writes.pt", "--inputs", "x.npz", "--budget", "1")
    assert outcome.exit_code == 2 and REFUSED in outcome.stderr
    assert not (here / "ran").exists() and "\x1b" not in capfd.readouterr().out
    torch.jit.load("writes.pt")(torch.ones(1))  # it is an attack
    assert (here / "ran").exists() or "\x1b" in capfd.readouterr().out


def test_torchscript_in_another_case_is_refused(here):
    """torch's reader of archives does not tell ``CODE/`` from ``code/``."""
    torch.jit.save(torch.jit.script(WritesWhenLoaded()), "good.pt")
    Path("ran").unlink(missing_ok=True)
    with zipfile.ZipFile("good.pt") as source, zipfile.ZipFile("bad.pt", "w") as target:
        for name in source.namelist():
            target.writestr(name.replace("/code/", "/CODE/"), source.read(name))
        target.writestr("good/code/note.py", "")
    outcome = run_any("optimize", "bad.pt", "--inputs", "x.npz", "--budget", "1")
    assert outcome.exit_code == 2 and outcome.stderr.count("\n") == 1
    assert not (here / "ran").exists()


def _parts(entries):
    """Bodies, directory and end record of an archive without compression."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, body in entries:
            archive.writestr(zipfile.ZipInfo(name), body)
    raw = buffer.getvalue()
    size, at = struct.unpack("<II", raw[-10:-2])
    return raw[:at], raw[at : at + size], raw[-22:]


def test_torchscript_behind_another_directory_is_not_run(here):
    """zipfile takes the directory before the end record, torch the one at the offset in it."""
    torch.jit.save(torch.jit.script(WritesWhenLoaded()), "evil.pt")
    Path("ran").unlink(missing_ok=True)
    with zipfile.ZipFile("evil.pt") as archive:
        evil = [(name, archive.read(name)) for name in archive.namelist()]
    good = [(name, b"" if "/code/" in name else body) for name, body in evil]
    bodies, directory, _ = _parts(evil)
    shown, shown_directory, end = _parts(good)
    # zipfile adds to every offset what its directory stands further back than the record says.
    added = len(directory) + len(shown)
    moved, at = bytearray(shown_directory), 0
    while at < len(moved):
        lengths = struct.unpack("<HHH", moved[at + 28 : at + 34])
        (offset,) = struct.unpack("<I", moved[at + 42 : at + 46])
        place = len(bodies) + len(directory) - added + offset
        struct.pack_into("<i", moved, at + 42, place)
        at += 46 + sum(lengths)
    end = end[:16] + struct.pack("<I", len(bodies)) + end[20:]
    Path("two.pt").write_bytes(bodies + directory + shown + bytes(moved) + end)
    outcome = run("optimize", "two.pt", "--inputs", "x.npz", "--budget", "1", expect=2)
    assert outcome.stderr.count("\n") == 1 and not (here / "ran").exists()
    torch.jit.load("two.pt")
    assert (here / "ran").exists()  # it is an attack


def test_ordinary_torchscript_gives_what_it_gave(here):
    scripted = torch.jit.script(net().eval())
    traced = torch.jit.trace(net().eval(), batches()[0])
    for kind, model in (("scripted", scripted), ("traced", traced)):
        torch.jit.save(model, f"{kind}.pt", _extra_files={"note": "by hand"})
        again = load_model(f"{kind}.pt")
        for x in batches():
            assert torch.equal(again(x), model(x))
        result = mpsearch.optimize(
            f"{kind}.pt", batches(), 1e-2, execution=mpsearch.Execution(progress=False)
        )
        assert result.status == "met"


# --- pickles ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_a_pickle_is_loaded_with_the_flag_alone(suffix, here):
    marker = here / "ran"
    Path(f"bad{suffix}").write_bytes(_pickle(_Touch(marker)))
    for arguments in (
        ["optimize", f"bad{suffix}", "--inputs", "x.npz", "--budget", "1"],
        ["optimize", NET, "--inputs", f"bad{suffix}", "--budget", "1"],
        ["optimize", NET, "--weights", f"bad{suffix}", "--inputs", "x.npz", "--budget", "1"],
        ["optimize", NET, "--targets", f"bad{suffix}", "--inputs", "x.npz", "--budget", "1"],
    ):
        outcome = run_any(*arguments)
        assert outcome.exit_code == 2 and outcome.stderr.count("\n") == 1, outcome.output
        assert not marker.exists()
    run_any("optimize", f"bad{suffix}", "--inputs", "x.npz", "--budget", "1", "--allow-pickle")
    if suffix in (".pt", ".pth"):
        assert marker.exists()  # the flag means what it says


# --- configs ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def result():
    return mpsearch.optimize(net(), batches(), 1e-2, execution=mpsearch.Execution(progress=False))


def test_a_metric_that_a_config_names_is_not_imported(result, here):
    result.save("out")
    Path("evil.py").write_text("open('ran', 'w')\ndef metric(a, b): return 0.0\n")
    config = json.loads(Path("out/precision.json").read_text())
    for custom in (True, False):
        changed = {**config, "metric": "evil:metric", "custom_metric": custom}
        Path("out/precision.json").write_text(json.dumps(changed))
        for command in (
            ["check", "out", NET, "--inputs", DATA],
            ["apply", "out", NET, "-o", "a.mlpackage"],
        ):
            run_any(*command)
            assert not Path("ran").exists()
        outcome = run_any("check", "out", NET, "--inputs", DATA)
        assert outcome.exit_code == 2 and "--metric" in outcome.stderr


def test_check_takes_the_metric_that_a_config_needs(here):
    def worst(reference, outputs):
        (a,), (b,) = reference.values(), outputs.values()
        return float(np.abs(a - b).max())

    mpsearch.optimize(
        net(), batches(), 1e-1, worst, execution=mpsearch.Execution(progress=False)
    ).save("out")
    config = json.loads(Path("out/precision.json").read_text())
    assert config["custom_metric"] and config["metric"] == "worst"
    with pytest.raises(mpsearch.InputError, match="metric"):
        mpsearch.check("out", net(), batches())
    checked = mpsearch.check("out", net(), batches(), metric=worst)
    package, model = Executor("out/model.mlpackage"), net().eval()
    with torch.no_grad():
        errors = [
            worst({"y": model(x).numpy()}, package.predict({"x": x.numpy()})) for x in batches()
        ]
    assert checked.holds and checked.error == pytest.approx(max(errors), rel=1e-3)


HOSTILE = [
    '"""\nopen("ran", "w")\n"""',
    "C:\\Users\\new\\models\\x.pt",
    "\\N{nothing}",
    "'+open('ran','w')+'",
    "new\nline\rand\u2028more",
    "quote\" ' ''' \"\"\"",
    "\x1b[31mred",
    "{0} %s {x!r}",
]


def _named(name, metric):
    """The result of a model whose path is ``name``, as the command line has it."""
    groups = mpsearch.Conversion(), mpsearch.Constraints(), mpsearch.Limits(), mpsearch.Execution()
    request = Request(1e-2, metric, None, 0.25, "greedy-optuna", "ieee", *groups)
    return answer(request, net(), batches(), Ending(), name)


@pytest.mark.thorough
@pytest.mark.parametrize("name", HOSTILE)
def test_op_selector_is_python_whatever_names_are_in_it(name, here):
    def metric(reference, outputs):
        (a,), (b,) = reference.values(), outputs.values()
        return float(np.linalg.norm(a - b) / np.linalg.norm(a))

    metric.__name__ = metric.__qualname__ = name
    found = _named(name, metric)
    found.save("out")
    source = Path("out/op_selector.py").read_text()
    held: dict = {}
    exec(compile(source, "op_selector.py", "exec"), held)
    assert set(held["FP32_OPS"]) == set(found.fp32_ops)
    assert not Path("ran").exists()
    assert any(name in value for value in held["MADE_FROM"].values())
    assert isinstance(ast.parse(source).body[0].value, ast.Constant)


def test_no_escape_sequence_reaches_the_terminal_or_the_report(here):
    named_so = "\x1b[31mred\x1b[0m\x07"

    def metric(reference, outputs):
        (a,), (b,) = reference.values(), outputs.values()
        return float(np.linalg.norm(a - b) / np.linalg.norm(a))

    metric.__name__ = f"{named_so}$x^2$"
    found = _named(named_so, metric)
    found.save("out")
    report = Path("out/report.html").read_text()
    assert "\x1b" not in report and "\x07" not in report and "red" in report
    assert "\x1b" not in text.summary(found, Path(named_so), lambda line, mood: line)
    for command in (["report", "out"], ["apply", "out", NET, "-o", "a.mlpackage"]):
        assert "\x1b" not in run_any(*command).output
    shutil.copy("x.npz", f"{named_so}.pt")
    outcome = run_any("optimize", f"{named_so}.pt", "--inputs", DATA, "--budget", "1")
    assert outcome.exit_code == 2 and "\x1b" not in outcome.output and "red" in outcome.output


def test_a_page_of_html_in_a_name_stays_text(here):
    found = _named("</script><script>alert(1)</script>", "rel_l2")
    found.save("out")
    report = Path("out/report.html").read_text()
    assert "<script>alert(1)" not in report


# --- packages --------------------------------------------------------------------------------

INNER = Path("Data") / "com.apple.CoreML"


@pytest.fixture
def package(result, here):
    result.save("out")
    return Path("out/model.mlpackage")


def _manifest_outside(package):
    manifest = json.loads((package / "Manifest.json").read_text())
    for entry in manifest["itemInfoEntries"].values():
        entry["path"] = "../../../secret"
    (package / "Manifest.json").write_text(json.dumps(manifest))


def _weights_linked(package):
    weight = package / INNER / "weights" / "weight.bin"
    weight.parent.mkdir(exist_ok=True)
    weight.unlink(missing_ok=True)
    weight.symlink_to(Path("secret").absolute())


def _folder_linked(package):
    shutil.move(package / INNER, "elsewhere")
    (package / INNER).symlink_to(Path("elsewhere").absolute(), target_is_directory=True)


def _pipe(package):
    os.mkfifo(package / INNER / "pipe")


def _spec_is_a_pipe(package):
    (package / INNER / "model.mlmodel").unlink()
    os.mkfifo(package / INNER / "model.mlmodel")


def _unlisted(package):
    """A link in a folder that can be entered and not listed."""
    _weights_linked(package)
    (package / INNER / "weights").chmod(0o311)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "change",
    [_manifest_outside, _unlisted, _weights_linked, _folder_linked, _pipe, _spec_is_a_pipe],
)
def test_a_package_is_read_inside_itself_alone(change, package):
    Path("secret").write_text("a secret")
    change(package)
    with pytest.raises(mpsearch.InputError):
        mpsearch.Executor(package)
    outcome = run_any("run", package, "--inputs", "x.npz", "-o", "y.npz")
    assert outcome.exit_code == 2 and outcome.stderr.count("\n") == 1


def test_opening_a_package_changes_none_of_its_files(package):
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in package.rglob("*") if p.is_file()}
    mpsearch.Executor(package)
    run_any("check", "out", NET, "--inputs", DATA)
    after = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in package.rglob("*") if p.is_file()}
    assert after == before


# --- files that crash, loop or ask for memory ---------------------------------------------------


class Plain(torch.nn.Module):
    def forward(self, x):
        return torch.relu(x)


def scripted(change, path="bad.pt"):
    """A TorchScript file whose code was changed."""
    torch.jit.save(torch.jit.script(Plain()), path)
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as out:
        for name, body in entries:
            out.writestr(name, change(body.decode()) if name.endswith(".py") else body)
    return path


def test_a_file_that_crashes_torch_is_one_line(here):
    """torch's parser recurses, and ends the process where the stack does."""
    deep = "(" * 20_000 + "x" + ")" * 20_000
    path = scripted(lambda code: code.replace("torch.relu(x)", deep))
    with pytest.raises(mpsearch.InputError, match=r"bad\.pt is not read: what reads it crashed"):
        load_model(path)


def test_a_file_from_a_daemonic_process_is_opened_as_well(here):
    """Such a process may have no forks: another interpreter opens the file first."""
    torch.jit.save(torch.jit.script(Plain()), "good.pt")
    bad = scripted(lambda code: code.replace("torch.relu(x)", "torch.save(x, 'out')"))
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_loads, ("good.pt",)) is None
        assert "holds 'save' in its code" in pool.apply(_loads, (bad,))


def _loads(path):
    try:
        load_model(path)
    except mpsearch.InputError as error:
        return str(error)
    return None


def test_limits_are_raised_by_options(here):
    """A sample of stride 0 takes few bytes, and any memory that is asked for."""
    torch.save({"x": torch.zeros(1).expand(1 << 20, 4, 1 << 12)}, "wide.pt")
    said = run("optimize", NET, "--inputs", "wide.pt", "--budget", "1e-2", expect=2)
    assert "'x' has shape (1048576, 4, 4096)" in said.stderr and "contiguous" in said.stderr
    wrong = run("optimize", NET, "--inputs", "x.npz", "--budget", "1", "--load-gib", "0", expect=2)
    assert "--load-gib is 0, expected GiB above 0" in wrong.stderr


def test_a_tower_of_powers_is_no_shape(exported, here):
    """sympy would work it out: each storey is 16 times as many digits."""
    tower = "9"
    for _ in range(6):
        tower = f"({tower})**16"

    def change(program):
        for place in _expressions(program):
            place["expr_str"] = tower

    with zipfile.ZipFile("tower.pt2", "w") as archive:
        for name, body in _edit(exported, change):
            archive.writestr(name, body)
    with pytest.raises(mpsearch.InputError, match="shape expression that is no arithmetic"):
        load_model("tower.pt2")


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["view", "trigger"])
def test_a_study_that_runs_without_an_end_is_refused(kind, here):
    run("optimize", NET, "--inputs", DATA, "--budget", "1e-2", "--out", "out")
    with sqlite3.connect("out/study.db") as study:
        if kind == "view":
            study.execute("alter table studies rename to others")
            endless = "with recursive n(i) as (select 1 union all select i + 1 from n) "
            study.execute(f"create view studies as {endless} select i as study_id from n")
        else:
            study.execute("create trigger t after insert on trials begin select 1; end")
    said = run(
        *("optimize", NET, "--inputs", DATA, "--budget", "1e-2", "--out", "out", "--resume"),
        expect=2,
    )
    assert f"holds the {kind}" in said.stderr
    assert not (here / "out" / ".search").exists()


def test_what_a_file_does_while_it_is_opened_stays_there(here, capfd):
    """TorchScript runs ``__setstate__``: it may warn, seed and switch gradients off."""

    class Stateful(torch.nn.Module):
        def forward(self, x):
            return torch.relu(x)

        @torch.jit.export
        def __getstate__(self):
            return (1, self.training)

        @torch.jit.export
        def __setstate__(self, state: tuple[int, bool]):
            torch.manual_seed(state[0])
            warnings.warn("\x1b]0;owned\x07", stacklevel=1)
            torch.set_grad_enabled(False)
            self.training = state[1]

    torch.jit.save(torch.jit.script(Stateful()), "stateful.pt")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    capfd.readouterr()
    load_model("stateful.pt")
    assert torch.equal(before, torch.get_rng_state()) and torch.is_grad_enabled()
    said = capfd.readouterr()
    assert said.out == "" and said.err == ""


def test_names_of_any_length_are_cut(here):
    np.savez("long.npz", **{"n" * 60_000: np.zeros((2, 4, 8), np.float32)})
    said = run("optimize", NET, "--inputs", "long.npz", "--budget", "1e-2", expect=2)
    assert len(said.stderr) < 1000 and "n ... n" in said.stderr
