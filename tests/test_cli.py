"""The command line: what it writes, what it prints, how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import mpsearch
from tests.command import run
from tests.models import Carried, Net, batches, net

CARRIED = "tests.models:Carried"
NET = "tests.models:net"
DATA = "tests.models:batches"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "mixed"
    outcome = run("optimize", NET, "--inputs", DATA, "--budget", "1e-2", "-o", out, "--json")
    return out, json.loads(outcome.stdout)


def test_optimize_writes_everything(written):
    out, printed = written
    assert {p.name for p in out.iterdir()} == {
        "manifest.json",
        "model.mlpackage",
        "op_selector.py",
        "precision.json",
        "report.html",
        "result.json",
        "study.db",
    }
    assert json.loads((out / "result.json").read_text()) == printed
    assert printed["status"] == "met"
    assert printed["error"] <= 1e-2 < printed["error_fp16"]
    config = json.loads((out / "precision.json").read_text())
    assert [op["name"] for op in config["fp32_ops"]] == printed["fp32_ops"]
    assert any(op["layer"] == "blocks.1" for op in config["fp32_ops"])


def test_summary_fits_80_columns(here):
    outcome = run("optimize", NET, "--inputs", DATA, "--budget", "1e-2")
    assert (here / "net-mixed" / "model.mlpackage").exists()
    assert max(map(len, outcome.stdout.splitlines())) <= 80
    assert "blocks.1" in outcome.stdout
    assert "held-out" in outcome.stdout


def test_apply_and_run_give_the_searched_model(written, here):
    out, printed = written
    said = run("apply", out, NET, "-o", "again.mlpackage").stdout
    assert f"with {len(printed['fp32_ops'])} op" in said
    x = batches()[0]
    np.savez("x.npz", x=x.numpy())
    run("run", "again.mlpackage", "--inputs", "x.npz", "-o", "y.npz")
    run("run", out / "model.mlpackage", "--inputs", "x.npz", "-o", "z.npz")
    y, z = np.load("y.npz")["output"], np.load("z.npz")["output"]
    np.testing.assert_array_equal(y, z)
    wanted = net().eval()(x).detach().numpy()
    assert np.linalg.norm(y - wanted) / np.linalg.norm(wanted) <= printed["budget"]


def test_run_predicts_for_every_row(written, here):
    rows = torch.stack(batches()).numpy()
    np.savez("x.npz", x=rows)
    run("run", written[0] / "model.mlpackage", "--inputs", "x.npz", "-o", "y.npz")
    assert np.load("y.npz")["output"].shape == (4, 1, 4, 3)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["state", "state_workaround"])
def test_run_takes_what_optimize_takes(name, here):
    draw = np.random.default_rng(0)
    arrays = {key: draw.standard_normal((5, 8)).astype(np.float32) for key in ("x", "state")}
    np.savez("data.npz", x=arrays["x"], **{name: arrays["state"]})
    run("optimize", CARRIED, "--inputs", "data.npz", "--budget", "1e-2", "-o", "out")
    run("run", "out/model.mlpackage", "--inputs", "data.npz", "-o", "y.npz")
    given = {key: torch.from_numpy(value) for key, value in arrays.items()}
    with np.load("y.npz") as made:
        for wanted, key in zip(
            Carried()(**given).values(), ("out", "list_workaround"), strict=True
        ):
            np.testing.assert_allclose(made[key], wanted, rtol=1e-2, atol=1e-2)
    np.savez("one.npz", x=arrays["x"][:1], **{name: arrays["state"][:1]})
    run("run", "out/model.mlpackage", "--inputs", "one.npz", "-o", "y.npz")
    assert np.load("y.npz")["out"].shape == (1, 1)
    np.savez("odd.npz", x=arrays["x"][:3], **{name: arrays["state"]})
    outcome = run("run", "out/model.mlpackage", "--inputs", "odd.npz", "-o", "y.npz", expect=2)
    assert "3, 5 rows" in outcome.output


def test_check_holds_and_fails(written):
    out, _ = written
    outcome = run("check", out, NET, "--inputs", DATA, "--json")
    report = json.loads(outcome.stdout)
    assert report["holds"] and report["same_model"] and not report["unmatched"]
    run("check", out, NET, "--inputs", DATA, "--budget", "1e-7", expect=1)
    other = run("check", out, "tests.models:unconvertible", "--inputs", DATA, expect=2)
    assert other.stderr.startswith("error: ")


def test_check_tells_machines(written, tmp_path):
    """JUnit XML and Markdown, of a check that holds, one that does not, and one without its ops."""
    out, _ = written
    junit, summary = tmp_path / "check.xml", tmp_path / "check.md"
    files = ("--junit", junit, "--markdown", summary)

    def suite():
        return ElementTree.parse(junit).getroot()

    run("check", out, NET, "--inputs", DATA, *files)
    assert (suite().get("tests"), suite().get("failures")) == ("3", "0")
    assert "holds" in summary.read_text().splitlines()[0]
    run("check", out, NET, "--inputs", DATA, "--budget", "1e-7", *files, expect=1)
    (failed,) = suite().iter("failure")
    assert "budget 1e-07" in failed.get("message")
    assert "does not hold" in summary.read_text()
    config = json.loads((out / "precision.json").read_text())
    config["fp32_ops"][0] |= {"name": "gone|<b>", "layer": "no.such"}
    config |= {"graph": [], "places": []}  # by which it would be found all the same
    (tmp_path / "precision.json").write_text(json.dumps(config))
    run("check", tmp_path / "precision.json", NET, "--inputs", DATA, *files, expect=1)
    assert "gone|<b>" in next(suite().iter("failure")).get("message")
    assert "<b>" not in summary.read_text().replace("\\<b\\>", "")


def test_check_names_the_lines_that_broke(written, tmp_path, monkeypatch):
    """After training, another layer overflows: which, where, and why."""
    out, _ = written
    monkeypatch.chdir(Path(__file__).parents[1])
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "retrained.py").write_text(
        "import torch\n"
        "from tests.models import net\n"
        "class Loud(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.net = net()\n"
        "    def forward(self, x):\n"
        "        y = self.net(x)\n"
        "        return y + torch.sqrt(\n"
        "            (y * 1e4).pow(2)).mean(-1, keepdim=True) * 1e-4\n"
        "def build():\n"
        "    return Loud()\n"
    )
    sarif, summary = tmp_path / "check.sarif", tmp_path / "check.md"
    files = ("--sarif", sarif, "--markdown", summary)
    said = run("check", out, "retrained:build", "--inputs", DATA, *files, "--json", expect=1)
    report = json.loads(said.stdout)
    broken = report["broken_by"]
    assert broken[0]["verdict"] == "overflow" and broken[0]["type"] in ("pow", "square")
    assert broken[0]["line"].endswith("retrained.py:10")
    assert "retrained.py:10" in summary.read_text()
    (made,) = json.loads(sarif.read_text())["runs"]
    first = made["results"][0]
    where = first["locations"][0]["physicalLocation"]
    assert where["region"] == {"startLine": 10}
    assert where["artifactLocation"]["uri"] == (tmp_path / "retrained.py").as_uri()
    assert first["ruleId"] == "overflow" and "overflow" in first["message"]["text"]
    assert {rule["id"] for rule in made["tool"]["driver"]["rules"]} >= {"overflow"}
    run("check", out, NET, "--inputs", DATA, "--sarif", sarif)
    assert json.loads(sarif.read_text())["runs"][0]["results"] == []
    run("check", out, NET, "--inputs", DATA, "--budget", "1e-7", "--sarif", sarif, expect=1)
    results = json.loads(sarif.read_text())["runs"][0]["results"]
    places = [r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in results]
    assert "tests/models.py" in places  # from the working directory, as code hosts have it


def test_fp16_suffices_is_said_at_once(here):
    arguments = ["--inputs", DATA, "--budget", "10", "--json", "--tolerate-overflow"]
    outcome = run("optimize", NET, *arguments)
    result = json.loads(outcome.stdout)
    assert result["status"] == "fp16_suffices"
    assert result["fp32_ops"] == []
    assert len(result["trials"]) <= 3


def test_infeasible_exits_3_and_writes_nothing(here):
    model = "tests.models:Reciprocal"
    outcome = run("optimize", model, "--inputs", DATA, "--budget", "1e-2", expect=3)
    assert "precision is not the cause" in " ".join(outcome.output.split())
    assert list(here.iterdir()) == []


@pytest.mark.thorough
def test_interrupt_writes_the_best_set(here):
    """Ctrl-C in a process of its own, as a user would press it."""
    script = (
        "import os, signal, mpsearch.search.search as s\n"
        "original = s.Search.judge\n"
        "def judge(self, *args, **kwargs):\n"
        "    if len(self.trials) == 2: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return original(self, *args, **kwargs)\n"
        "s.Search.judge = judge\n"
        "from mpsearch.cli import main\n"
        f"main(['optimize', '{NET}', '--inputs', '{DATA}', '--budget', '1e-2', '--json',"
        " '--tolerate-overflow'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 130, done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == "interrupted"
    assert result["error"] <= 1e-2
    assert (here / "net-mixed" / "model.mlpackage").exists()


@pytest.mark.thorough
def test_stdout_holds_results_alone_and_stderr_nothing(here):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "mpsearch.cli", "optimize", NET]
        + f"--inputs {DATA} --budget 1e-2 --json".split(),
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert json.loads(done.stdout)["status"] == "met"
    assert done.stderr == ""


@pytest.mark.thorough
def test_progress_says_what_is_done_and_the_best_so_far(here):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "mpsearch.cli", "optimize", NET]
        + f"--inputs {DATA} --budget 1e-2 --json --progress --tolerate-overflow".split(),
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    best = len(json.loads(done.stdout)["fp32_ops"])
    assert "converting" in done.stderr
    assert f": best {best}" in done.stderr
    assert "MIL" not in done.stderr


# --- sources ---------------------------------------------------------------------------------


@pytest.mark.thorough
def test_every_kind_of_source(here):
    model, x = net().eval(), batches()
    torch.jit.save(torch.jit.trace(model, x[0]), "script.pt")
    torch.export.save(torch.export.export(model, (x[0],)), "exported.pt2")
    torch.save(model, "pickled.pt")
    torch.save(model.state_dict(), "weights.pt")
    np.savez("x.npz", x=torch.cat(x).numpy())
    counts = set()
    for source in ("script.pt", "exported.pt2", "pickled.pt", NET):
        extra = ["--allow-pickle"] if source == "pickled.pt" else []
        extra += ["--weights", "weights.pt"] if source == NET else []
        outcome = run(
            "optimize",
            source,
            *extra,
            "--inputs",
            "x.npz",
            "--budget",
            "1e-2",
            "--json",
            "-o",
            "out",
        )
        result = json.loads(outcome.stdout)
        assert result["status"] == "met"
        counts.add(len(result["fp32_ops"]))
    assert len(counts) == 1


@pytest.mark.thorough
def test_an_fp32_package_is_a_source(here):
    result = mpsearch.optimize(
        net(), batches(), 1e-2, constraints=mpsearch.Constraints(keep_fp32=["op:*"])
    )
    result.save("fp32")
    run("optimize", "fp32/model.mlpackage", "--random", "4", "--budget", "1e-2", "-o", "noise")
    np.savez("x.npz", x=torch.cat(batches()).numpy())
    outcome = run(
        "optimize",
        "fp32/model.mlpackage",
        "--inputs",
        "x.npz",
        "--budget",
        "1e-2",
        "-o",
        "mixed",
        "--json",
    )
    found = json.loads(outcome.stdout)
    assert found["status"] == "met" and found["fp32_ops"]
    executor = mpsearch.Executor("mixed/model.mlpackage")
    x = batches()[0]
    (got,) = executor.predict({"x": x.numpy()}).values()
    wanted = net().eval()(x).detach().numpy()
    assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) <= 1e-2


# --- bad input -------------------------------------------------------------------------------


def _files(here: Path) -> None:
    x = torch.cat(batches()).numpy()
    np.savez("good.npz", x=x)
    np.savez("key.npz", y=x)
    np.savez("shape.npz", x=x[..., :5])
    np.savez("empty.npz", x=x[:0])
    np.savez("nothing.npz")
    (here / "text.pt").write_text("not a model")
    torch.save(Net(), "pickled.pt")
    torch.save(Net().state_dict(), "state.pt")
    (here / "file").write_text("in the way")
    (here / "full").mkdir()
    (here / "full" / "mine.txt").write_text("mine")


BAD = {
    "objective": ([NET, "--inputs", "good.npz", "--minimize", "watts"], "'casts'"),
    "hazards": ([NET, "--inputs", "good.npz", "--hazards", "maybe"], "'warn'"),
    "storage": ([NET, "--inputs", "good.npz", "--storage", "nowhere"], "sqlite:///study.db"),
    "missing file": (["nowhere.pt", "--inputs", "good.npz"], "does not exist"),
    "missing data": ([NET, "--inputs", "nowhere.npz"], "does not exist"),
    "wrong keys": ([NET, "--inputs", "key.npz"], "'y'"),
    "wrong shape": ([NET, "--inputs", "shape.npz"], "does not run on a sample"),
    "not a model": (["text.pt", "--inputs", "good.npz"], "not a model"),
    "a pickled module": (["pickled.pt", "--inputs", "good.npz"], "--allow-pickle"),
    "a state dict": (["state.pt", "--inputs", "good.npz"], "--weights"),
    "not a module": (["tests.models:no_module", "--inputs", "good.npz"], "torch.nn.Module"),
    "no such factory": (["tests.models:nobody", "--inputs", "good.npz"], "nobody"),
    "unknown pin": ([NET, "--inputs", "good.npz", "--keep-fp32", "type:sofmax"], "type:sofmax"),
    "malformed pin": ([NET, "--inputs", "good.npz", "--keep-fp16", "softmax"], "type:softmax"),
    "unknown metric": ([NET, "--inputs", "good.npz", "--metric", "rel_l3"], "rel_l3"),
    "budget": ([NET, "--inputs", "good.npz", "--budget", "0"], "budget is 0"),
    "negative budget": ([NET, "--inputs", "good.npz", "--budget", "-1"], "budget is -1"),
    "empty data": ([NET, "--inputs", "empty.npz"], "no samples"),
    "no arrays": ([NET, "--inputs", "nothing.npz"], "empty"),
    "unconvertible": (["tests.models:unconvertible", "--inputs", "good.npz"], "cannot convert"),
    "out is a file": ([NET, "--inputs", "good.npz", "-o", "file"], "is a file"),
    "out under a file": ([NET, "--inputs", "good.npz", "-o", "file/out"], "cannot write"),
    "out is not ours": ([NET, "--inputs", "good.npz", "-o", "full"], "not empty"),
    "unwritable": ([NET, "--inputs", "good.npz", "-o", "/proc/out"], "cannot write"),
    "unknown strategy": ([NET, "--inputs", "good.npz", "--strategy", "luck"], "greedy-optuna"),
    "unknown numerics": ([NET, "--inputs", "good.npz", "--numerics", "bf16"], "bf16"),
    "unknown target": ([NET, "--inputs", "good.npz", "--target", "iOS14"], "iOS14"),
    "unknown device": ([NET, "--inputs", "good.npz", "--device", "tpu"], "tpu"),
    "no data at all": ([NET], "--shape"),
    "random without shape": ([NET, "--random", "2"], "--shape"),
    "heldout": ([NET, "--inputs", "good.npz", "--heldout", "1"], "heldout"),
    "trials": ([NET, "--inputs", "good.npz", "--trials", "0"], "trials"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case, here):
    _files(here)
    before = sorted(str(p) for p in here.rglob("*"))
    arguments, hint = BAD[case]
    if "--budget" not in arguments:
        arguments = [*arguments, "--budget", "1e-2"]
    outcome = run("optimize", *arguments, expect=2)
    lines = outcome.stderr.strip().splitlines()
    assert len(lines) == 1, outcome.stderr
    assert lines[0].startswith("error: ")
    assert hint in lines[0]
    assert outcome.stdout == ""
    assert sorted(str(p) for p in here.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("{", "no JSON"),
        ('{"version": 99}', "version 99"),
        ('{"version": 2}', "missing required field"),
        ('{"version": 9}', "expected 1 to 3"),
        ('{"version": 1}', "version 1: 'source'"),
    ],
)
def test_bad_configs(content, hint, here):
    (here / "precision.json").write_text(content)
    outcome = run("check", ".", NET, "--inputs", DATA, expect=2)
    assert hint in outcome.stderr
    outcome = run("apply", "nowhere", NET, "-o", "x.mlpackage", expect=2)
    assert "does not exist" in outcome.stderr


def test_exported_program_with_code_in_it_is_refused(here):
    """torch.export.load hands shape expressions to sympy, which evaluates them as Python."""
    import zipfile

    x = batches()[0]
    batch = torch.export.Dim("batch", min=1, max=8)
    exported = torch.export.export(net().eval(), (torch.cat([x, x]),), dynamic_shapes=({0: batch},))
    torch.export.save(exported, "good.pt2")
    marker = here / "ran"
    with zipfile.ZipFile("good.pt2") as source, zipfile.ZipFile("bad.pt2", "w") as target:
        for name in source.namelist():
            body = source.read(name)
            if name.endswith(".json") and b"expr_str" in body:
                code = f"__import__('pathlib').Path('{marker}').touch()"
                body = body.replace(b'"expr_str": "', b'"expr_str": "' + code.encode() + b" or ", 1)
            target.writestr(name, body)
    np.savez("x.npz", x=x.numpy())
    outcome = run("optimize", "bad.pt2", "--inputs", "x.npz", "--budget", "1", expect=2)
    assert "--allow-pickle" in outcome.stderr
    assert not marker.exists()


def test_pareto_and_analyze_take_the_same_model_and_data(here):
    front = json.loads(run("pareto", NET, "--inputs", DATA, "--points", "3", "--json").stdout)
    errors = [point["error"] for point in front["points"]]
    assert errors == sorted(errors, reverse=True)
    counts = [len(point["fp32_ops"]) for point in front["points"]]
    assert counts == sorted(counts) and counts[0] > 0  # what overflows is FP32 in all of them
    found = json.loads(run("analyze", NET, "--inputs", DATA, "--json").stdout)
    assert len(found["ops"]) == front["candidate_ops"]
    assert found["is_precision"] and found["parts_at"] is None
    outcome = run("pareto", NET, "--inputs", DATA, "--points", "1", expect=2)
    assert outcome.stderr == "error: points is 1, expected a whole number, from 2 to 1000\n"


ESCAPE = "\x1b["


def _on_a_terminal(arguments: list[str], environment: dict[str, str]) -> str:
    """What a command prints where stdout is a terminal."""
    master, slave = os.openpty()
    command = [sys.executable, "-m", "mpsearch.cli", *arguments]
    with subprocess.Popen(
        command, stdout=slave, stderr=subprocess.DEVNULL, env={**os.environ, **environment}
    ) as process:
        os.close(slave)
        parts = []
        while True:
            try:
                part = os.read(master, 4096)
            except OSError:  # Linux: the other end is closed
                break
            if not part:
                break
            parts.append(part)
        assert process.wait() == 0
    os.close(master)
    return b"".join(parts).decode()


@pytest.mark.thorough
def test_color_only_on_a_terminal_and_never_with_no_color(tmp_path):
    arguments = ["optimize", NET, "--inputs", DATA, "--budget", "1e-2", "-o", str(tmp_path / "o")]
    shown = _on_a_terminal(arguments, {"NO_COLOR": "", "PYTHONPATH": os.getcwd()})
    plain = _on_a_terminal(arguments, {"NO_COLOR": "1", "PYTHONPATH": os.getcwd()})
    piped = run(*arguments).stdout
    assert ESCAPE in shown
    assert ESCAPE not in plain and ESCAPE not in piped
    lines = [line.rstrip() for line in plain.splitlines() if not line.startswith("wrote ")]
    assert [line for line in lines if len(line) > 80] == []


@pytest.mark.thorough
def test_verbose_shows_the_passes_on_stderr(tmp_path):
    arguments = ["optimize", NET, "--inputs", DATA, "--budget", "1e-2", "-o", tmp_path / "o"]
    outcome = run(*arguments, "--verbose", "--tolerate-overflow")
    lines = outcome.stderr.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[0] == "pass")
    assert any("proposed" in line and "conflicts" in line for line in lines[:head])
    lines = lines[head:]
    assert lines[0].split() == ["pass", "evaluations", "met", "fewest", "FP32", "ops", "so", "far"]
    assert [line.split()[0] for line in lines[1:3]] == ["ends", "propose"]
    result = json.loads((tmp_path / "o" / "result.json").read_text())
    assert sum(int(line.split()[1]) for line in lines[1:]) == len(result["trials"])
    assert "pass" not in outcome.stdout.split()


def test_json_on_every_command(written, tmp_path):
    out, _ = written
    np.savez(tmp_path / "x.npz", x=torch.stack(batches()).numpy())
    for arguments in (
        ["apply", out, NET, "-o", tmp_path / "a.mlpackage"],
        ["run", out / "model.mlpackage", "--inputs", tmp_path / "x.npz", "-o", tmp_path / "y.npz"],
        ["report", out],
        ["check", out, NET, "--inputs", DATA],
        ["pareto", NET, "--inputs", DATA, "--points", "2", "--trials", "20"],
        ["analyze", NET, "--inputs", DATA],
    ):
        printed = json.loads(run(*arguments, "--json").stdout)
        assert isinstance(printed, dict) and printed


def test_weights_are_a_state_dict_and_have_a_dtype_in_the_package(tmp_path):
    torch.save(net().state_dict(), tmp_path / "weights.pt")
    arguments = ["optimize", NET, "--inputs", DATA, "--budget", "1e-2", "-o", tmp_path / "o"]
    both = ["--weights", tmp_path / "weights.pt", "--weight-dtype", "int8"]
    printed = json.loads(run(*arguments, *both, "--json").stdout)
    assert printed["weights"]["dtype"] == "int8"


HALF = ["examples.half_activations:build", "--inputs", "examples.half_activations:samples"]
UPSAMPLER = ["examples.conv_transpose:build", "--inputs", "examples.conv_transpose:samples"]


def test_activations_of_half_models_convert(tmp_path):
    """coremltools #2470, #2480, as docs/guides/half_activations.md tells it."""
    outcome = run("optimize", *HALF, "--budget", "5e-3", "-o", tmp_path / "o")
    assert outcome.stdout.startswith("Ready: FP16 meets the budget as it is")
    kinds = {op["type"] for op in json.loads((tmp_path / "o" / "result.json").read_text())["ops"]}
    assert {"leaky_relu", "prelu", "elu"} <= kinds


@pytest.mark.thorough
def test_conv_transpose_is_pinned(tmp_path):
    """coremltools #2324, as docs/guides/conv_transpose.md tells it."""
    outcome = run("optimize", *UPSAMPLER, "--budget", "1e-2", "-o", tmp_path / "o")
    assert "#2324" in outcome.stdout and "runtime fault" in outcome.stdout
    result = json.loads((tmp_path / "o" / "result.json").read_text())
    assert result["pinned_by_hazard"] == result["fp32_ops"] and len(result["fp32_ops"]) == 2
    off = run("optimize", *UPSAMPLER, "--budget", "1e-2", "-o", tmp_path / "o", "--hazards", "off")
    assert off.stdout.startswith("Ready: FP16 meets the budget as it is")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["optimize", "--help"], ["optimise"]])
def test_help_and_mistakes_wait_for_no_library(words):
    code = (
        "import sys\n"
        "from mpsearch.cli import main\n"
        f"try: main({words!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'coremltools', 'numpy', 'optuna'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_are_there_when_asked_for():
    assert set(mpsearch.__all__) <= set(dir(mpsearch))
    for name in mpsearch.__all__:
        assert getattr(mpsearch, name).__name__ == name
    with pytest.raises(AttributeError):
        mpsearch.nothing  # noqa: B018


@pytest.mark.thorough
def test_coremltools_loads_no_frontends_in_a_command_and_others_may():
    """It would import scikit-learn and transformers only to know that they are installed."""
    pytest.importorskip("sklearn")
    code = (
        "import sys\n"
        "from mpsearch.cli.process import skip_frontends\n"
        "skip_frontends()\n"
        "import coremltools\n"
        "assert not {'sklearn', 'transformers'} & set(sys.modules)\n"
        "import sklearn"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
