"""Does a run in this process, and judges what came of it."""

from __future__ import annotations

import contextlib
import fnmatch
import gc
import json
import math
import os
import random
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch

import mpsearch
from mpsearch.cli import main
from mpsearch.options import IN_DB

from . import measures, models, sources
from .draw import FUNCTIONS, Run, expected
from .models import ARCHITECTURES, Sample

_GROUPS = {
    "conversion": mpsearch.Conversion,
    "constraints": mpsearch.Constraints,
    "limits": mpsearch.Limits,
    "execution": mpsearch.Execution,
}
#: What the commands take beside the groups, in Python.
_OWN = {
    "optimize": ("metric", "heldout", "strategy", "numerics"),
    "analyze": ("metric", "numerics"),
    "pareto": ("metric", "heldout", "strategy", "numerics", "points"),
    "check": ("metric", "numerics"),
    "apply": (),
}
OUT = "out"


@dataclass
class Outcome:
    """How a run ended.

    Attributes
    ----------
    kind
        ``met``, ``fp16_suffices``, ``infeasible``, ``interrupted``, ``refused``, or the command.
    failures
        What is wrong with that; nothing where the run passes.
    """

    kind: str = "nothing"
    failures: list[str] = field(default_factory=list)

    def fail(self, what: str) -> None:
        self.failures.append(" ".join(what.split())[:2000])


@dataclass
class Stage:
    """What a run works with.

    Attributes
    ----------
    samples
        As the model takes them, one by one.
    budget
        In the run's metric.
    """

    run: Run
    source: sources.Source
    samples: list[Sample]
    budget: float
    folder: Path

    @property
    def references(self) -> list[measures.Outputs]:
        """What PyTorch gives in FP32."""
        return [measures.arrays(self.source.predict(s)) for s in self.samples]


def staged(run: Run, folder: Path) -> Stage:
    """The model and the samples of a run, in files in ``folder``."""
    source = sources.source(run, folder)
    samples = ARCHITECTURES[run.architecture].samples(run.seed, run.samples)
    stage = Stage(run, source, samples, 0.0, folder)
    stage.budget = measures.budget(run, stage.references)
    return stage


# --- in Python ------------------------------------------------------------------------------


def _groups(run: Run) -> dict[str, Any]:
    """The groups of options, made as a caller makes them."""
    taken = {
        "optimize": tuple(_GROUPS),
        "analyze": ("conversion", "execution"),
        "pareto": ("conversion", "limits", "execution"),
        "check": ("execution",),
        "apply": (),
    }[run.command]
    found = {}
    for group in taken:
        names = _GROUPS[group].__struct_fields__
        given = {k: v for k, v in run.options.items() if k in names}
        if given:
            found[group] = _GROUPS[group](**given)
    return found


def _own(run: Run) -> dict[str, Any]:
    found = {k: run.options[k] for k in _OWN[run.command] if run.get(k) is not None}
    if found.get("metric") in ("worst", "agreement"):
        found["metric"] = getattr(models, found["metric"])
    return found


def _given(stage: Stage) -> tuple[Any, dict[str, Any]]:
    """The samples in Python, and their targets."""
    run, wrong = stage.run, stage.run.get("input")
    if wrong == "empty":
        return [], {}
    if wrong == "unknown":
        return [{**sample, "unknown": torch.zeros(1)} for sample in stage.samples], {}
    if run.get("metric") != "agreement":
        return sources.in_python(run, stage.samples), {}
    targets = models.targets(len(stage.samples))
    if run.get("pairs"):
        given = zip(sources.in_python(run, stage.samples), targets, strict=True)
        return list(given), {"targets": "pairs"}
    return sources.in_python(run, stage.samples), {
        "targets": targets[:1] if wrong == "targets" else targets
    }


def in_python(stage: Stage) -> Any:
    """Call mpsearch as the run says.

    Raises
    ------
    MpsearchError
        Where it refuses.
    """
    run = stage.run
    model = "lost.pt" if run.get("input") == "model" else stage.source.given
    data, given = _given(stage)
    if run.command == "apply":
        return mpsearch.apply(OUT, model, data if run.get("example") else None)
    given |= _own(run) | _groups(run)
    if run.command == "optimize":
        return mpsearch.optimize(model, data, run.get("budget", stage.budget), **given)
    if run.command == "pareto":
        return mpsearch.pareto(model, data, **given)
    if run.get("budget"):
        given["budget"] = stage.budget
    if run.command == "analyze":
        return mpsearch.analyze(model, data, **given)
    return mpsearch.check(OUT, model, data, **given)


# --- in the shell ---------------------------------------------------------------------------

#: Options of Python's that have another name in the shell.
_FLAGS = {"states": "--state", "model_explorer": "--model-explorer"}
#: What is no option of the shell's by itself.
_INNER = {"input", "pairs", "random", "example", "budget", "json", "metric"}


def arguments(stage: Stage) -> list[str]:
    """The command line of a run."""
    run, wrong = stage.run, stage.run.get("input")
    model = list(stage.source.arguments)
    if wrong == "model":
        model = ["lost.pt"]
    if wrong == "weights":
        model += ["--weights", "weights.pt"]
    found = [run.command, *([OUT] if run.command in ("check", "apply") else []), *model]
    if run.command == "apply":
        found += ["--out", "new" if wrong == "out" else "new.mlpackage"]
    if run.command == "optimize":
        found += ["--out", OUT]
    found += _data(stage)
    if run.command == "optimize" or run.get("budget"):
        given = run.get("budget")
        found += ["--budget", str(stage.budget if given in (None, True) else given)]
    for name, value in run.options.items():
        if name not in _INNER and value is not None:
            found += _flag(name, value)
    return [*found, *(["--json"] if run.get("json") else [])]


def _flag(name: str, value: Any) -> list[str]:
    flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
    if name == "progress":
        return ["--progress" if value else "--no-progress"]
    if value is True:
        return [flag]
    values = value if isinstance(value, tuple) else (value,)
    return [text for item in values for text in (flag, str(item))]


def _data(stage: Stage) -> list[str]:
    run, wrong = stage.run, stage.run.get("input")
    if run.command == "apply" and not run.get("example"):
        return []
    metric = run.get("metric")
    found = [] if metric is None else ["--metric", metric]
    if metric in ("worst", "agreement"):
        found[1] = f"{models.__name__}:{metric}"
    if wrong == "both":
        return [*found, "--inputs", "samples.npz", "--random", "3"]
    if (count := run.get("random")) is not None:
        shapes = ARCHITECTURES[run.architecture].inputs.items()
        kinds = {name: ":int" if "int" in k or k == "mask" else "" for name, (_, k) in shapes}
        for name, (shape, _) in shapes:
            found += ["--shape", f"{name}={','.join(map(str, shape))}{kinds[name]}"]
        return [*found, "--random", str(run.samples if count is True else count)]
    samples = stage.samples
    if wrong == "unknown":
        samples = [{**sample, "unknown": torch.zeros(1, 1)} for sample in samples]
    found += sources.on_disk(run, samples, stage.folder)
    if metric != "agreement":
        return found
    if run.get("pairs"):
        return [*found, "--targets", "pairs"]
    targets = models.targets(len(samples))[: 1 if wrong == "targets" else None]
    np.savez(stage.folder / "targets.npz", targets=np.array(targets, np.float32))
    return [*found, "--targets", str(stage.folder / "targets.npz")]


@contextlib.contextmanager
def _into(stdout: Path, stderr: Path) -> Iterator[None]:
    """What is written to the two within the block, by whatever library, goes into files."""
    saved = os.dup(1), os.dup(2)
    try:
        for number, path in ((1, stdout), (2, stderr)):
            with path.open("wb") as stream:
                os.dup2(stream.fileno(), number)
        yield
    finally:
        for number, kept in zip((1, 2), saved, strict=True):
            os.dup2(kept, number)
            os.close(kept)


def in_shell(stage: Stage) -> tuple[int, str, str]:
    """Run the command: its exit code, stdout and stderr."""
    out, err = stage.folder / "stdout", stage.folder / "stderr"
    code = -1
    with _into(out, err):
        try:
            main(arguments(stage))
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.read_text(errors="replace"), err.read_text(errors="replace")


# --- the judge ------------------------------------------------------------------------------


def judged(run: Run, folder: Path) -> Outcome:
    """Do a run in ``folder``, and judge it."""
    outcome = Outcome()
    work, files = folder / "work", folder / "files"
    work.mkdir()
    files.mkdir()
    os.chdir(work)
    stage = staged(run, files)
    if run.command in ("check", "apply"):
        first = replace(
            stage, run=run.searched, budget=measures.budget(run.searched, stage.references)
        )
        try:
            result = in_python(first)
        except Exception as error:
            outcome.kind = "nothing to check"
            outcome.fail(f"the search before: {_told(error)}")
            return outcome
        if not result.met:
            _infeasible(first, result.explanation, outcome)
            outcome.kind = "nothing to check"
            return outcome
        result.save(OUT)
        del result
        stage.budget = measures.budget(run if run.get("metric") else run.searched, stage.references)
    before = set(os.listdir(work))
    _shell(stage, outcome) if run.shell else _python(stage, outcome)
    _left(stage, before, outcome)
    return outcome


def _refused(stage: Stage, message: str, outcome: Outcome) -> None:
    outcome.kind = "refused"
    words = expected(stage.run)
    if not any(piece in message for piece in words):
        said = " or ".join(map(repr, words)) or "no refusal"
        outcome.fail(f"refused: {message!r}; expected {said}")


def _taken(stage: Stage, outcome: Outcome) -> None:
    if words := expected(stage.run):
        outcome.fail(f"not refused; expected {' or '.join(map(repr, words))}")


def _python(stage: Stage, outcome: Outcome) -> None:
    run = stage.run
    rooms = set(os.listdir(tempfile.gettempdir()))
    try:
        with _undisturbed(stage, outcome):
            found = in_python(stage)
            if run.command == "optimize" and run.get("resume") and run.get("storage"):
                found = in_python(stage)
    except mpsearch.InputError as error:
        return _refused(stage, str(error), outcome)
    except Exception as error:
        return outcome.fail(_told(error))
    _taken(stage, outcome)
    outcome.kind = run.command
    _FOUND[run.command](stage, found, outcome)
    del found
    gc.collect()
    left = set(os.listdir(tempfile.gettempdir())) - rooms
    # coremltools keeps the package behind an MLModel until the process ends.
    if left := {name for name in left if not name.endswith(".mlpackage")}:
        outcome.fail(f"left in TMPDIR when the result was let go: {sorted(left)}")
    return None


def _told(error: Exception) -> str:
    """An exception, and where it comes from."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {error}"


def _shell(stage: Stage, outcome: Outcome) -> None:
    run = stage.run
    code, out, err = in_shell(stage)
    if run.command == "optimize" and run.get("resume") and run.get("storage") and code == 0:
        code, out, err = in_shell(stage)
    last = err.strip().splitlines()[-1] if err.strip() else ""
    if "defect" in err or "Traceback" in err:
        return outcome.fail(f"exit {code}: {err[-1500:]}")
    if code == 2:
        if out:
            outcome.fail(f"refused, and stdout holds {out[:200]!r}")
        return _refused(stage, last, outcome)
    _taken(stage, outcome)
    outcome.kind = run.command
    if run.get("json"):
        try:
            found = json.loads(out)
        except ValueError:
            return outcome.fail(f"--json, and stdout is {out[:300]!r}")
        if run.command == "optimize":
            outcome.kind = found["status"]
    _SHELL[run.command](stage, code, out + err, outcome)
    return None


@contextlib.contextmanager
def _undisturbed(stage: Stage, outcome: Outcome) -> Iterator[None]:
    """The caller's model and the process are afterwards as they were."""
    model = stage.source.given
    module = model if isinstance(model, torch.nn.Module) else None
    kept = {} if module is None else {k: v.clone() for k, v in module.state_dict().items()}
    before = _around(module)
    try:
        yield
    finally:
        for (name, was), (_, now) in zip(before, _around(module), strict=True):
            if was != now:
                outcome.fail(f"the call changed {name}: {was} to {now}"[:300])
        if module is not None and not measures.same(module, kept):
            outcome.fail("the call changed the model's tensors")


def _around(module: torch.nn.Module | None) -> list[tuple[str, Any]]:
    modes = None if module is None else [m.training for m in module.modules()]
    grads = None if module is None else [p.requires_grad for p in module.parameters()]
    numbers = np.random.get_state()
    return [
        ("the model's modes", modes),
        ("requires_grad", grads),
        ("torch's random state", hash(torch.get_rng_state().numpy().tobytes())),
        ("numpy's random state", hash((numbers[1].tobytes(), numbers[2]))),  # type: ignore
        ("Python's random state", hash(random.getstate())),
        ("the default dtype", torch.get_default_dtype()),
        ("grad mode", torch.is_grad_enabled()),
        ("the threads", torch.get_num_threads()),
        ("the folder", os.getcwd()),
        ("where temporary files go", tempfile.gettempdir()),
    ]


def _left(stage: Stage, before: set[str], outcome: Outcome) -> None:
    """Nothing half-written stays behind in the folder where the command ran."""
    run = stage.run
    allowed = {OUT, "new.mlpackage", f"{OUT}-interrupted"}
    allowed |= {"study.db", "study.log"} if run.get("storage") else set()
    allowed |= {str(run.get(name)) for name in ("junit", "markdown", "sarif")}
    after = set(os.listdir())
    strange = {
        n for n in after - before - allowed if not (run.get("model_explorer") and "graph" in n)
    }
    if strange:
        outcome.fail(f"left in the folder: {sorted(strange)}")
    if outcome.kind == "refused" and expected(run) and after - before - {"study.db", "study.log"}:
        outcome.fail(f"refused, and written: {sorted(after - before)}")


# --- results of each command ----------------------------------------------------------------


def _optimized(stage: Stage, result: Any, outcome: Outcome) -> None:
    outcome.kind = result.status
    if result.met or result.status == "interrupted":
        result.save(OUT)
        _package(stage, result.as_dict(), outcome)
    elif result.status == "infeasible":
        _infeasible(stage, result.explanation, outcome)
    else:
        outcome.fail(f"status {result.status}")


def _optimized_in_shell(stage: Stage, code: int, text: str, outcome: Outcome) -> None:
    if code == 3:
        outcome.kind = "infeasible"
        if Path(OUT).exists():
            outcome.fail(f"infeasible, and there is {OUT}")
        return _infeasible(stage, text, outcome)
    if code != 0:
        return outcome.fail(f"exit {code}: {text[-500:]}")
    result = json.loads((Path(OUT) / "result.json").read_text())
    outcome.kind = result["status"]
    return _package(stage, result, outcome)


def _package(stage: Stage, result: dict[str, Any], outcome: Outcome) -> None:
    """What is written holds, and is what the result says."""
    run = stage.run
    if result["status"] == "interrupted" and run.get("timeout") is None:
        outcome.fail("interrupted, without a timeout")
    if run.get("random"):
        return
    package = Path(OUT) / "model.mlpackage"
    samples = measures.shaped(package, run, stage.samples)
    samples = measures.calibration(run, samples)
    found = measures.error(package, run, stage.source.predict, samples)
    limit = measures.limit(run, stage.budget)
    if found > limit:
        outcome.fail(f"{result['status']}: the package's loss is {found:.6g}, allowed {limit:.6g}")
    told = math.inf if result["error"] is None else result["error"]
    told = -told if run.get("metric") in IN_DB else told
    if abs(told - found) > 0.02 * max(abs(found), abs(told), 1e-7) + 1e-7:
        outcome.fail(f"the result tells of {told:.6g}, the package gives {found:.6g}")
    if run.seed % 2 == 0 and run.get("metric") not in FUNCTIONS:
        model = _again(stage) if run.shell else stage.source.given
        checked = mpsearch.check(OUT, model, samples)
        if not checked.holds:
            outcome.fail(f"check does not hold: error {checked.error}, budget {checked.budget}")


def _again(stage: Stage) -> Any:
    """The model of a run in the shell, for Python."""
    source = stage.source
    return source.module if "--weights" in source.arguments else source.arguments[0]


def _infeasible(stage: Stage, said: str, outcome: Outcome) -> None:
    """Right where FP32 itself breaks the budget, or what is pinned to FP16 does."""
    run = stage.run
    if run.get("random") or any(p.startswith("layer:") for p in run.get("keep_fp16", ())):
        return
    pins = tuple(pin.removeprefix("type:") for pin in run.get("keep_fp16", ()))
    precision = ct.precision.FLOAT32
    if pins:
        precision = ct.transform.FP16ComputePrecision(
            op_selector=lambda op: any(fnmatch.fnmatch(op.op_type, pin) for pin in pins)
        )
    io = run.get("io_dtype") or (
        "fp16" if run.source in ("bf16", "fp16") and not run.shell else "fp32"
    )
    target = run.target if run.source != "package" else "iOS17"
    samples = stage.samples
    if run.form in ("batch", "loader") and run.get("batches") == "whole":
        step = len(samples) if run.form == "batch" else 2
        samples = [sources.batched(samples[i : i + step]) for i in range(0, len(samples), step)]
        samples = [s for s in samples if len(next(iter(s.values()))) == step]
    io = "fp32" if target == "iOS15" else io
    made = sources.plain(stage.source.module, samples[0], target, io, precision)
    path = stage.folder / "plain.mlpackage"
    shutil.rmtree(path, ignore_errors=True)
    made.save(str(path))
    # Of all together and of each: of a share, few samples that are held out may have another.
    parts = [samples, *([sample] for sample in samples)]
    found = max(measures.error(path, run, stage.source.predict, part) for part in parts)
    limit = measures.limit(run, stage.budget)
    # Samples moved a little are searched on as well, and may be worse.
    if found < limit - 0.5 * abs(limit):
        outcome.fail(f"infeasible, and what is pinned gives {found:.4g} of {limit:.4g}: {said}")


def _analyzed(stage: Stage, found: Any, outcome: Outcome) -> None:
    if not found.ops:
        outcome.fail("an analysis of no op")
    if not math.isfinite(found.error_fp32) and found.metric not in IN_DB:
        outcome.fail(f"all FP32 gives {found.error_fp32}: {found.explanation}")


def _traded(stage: Stage, front: Any, outcome: Outcome) -> None:
    if not front.points:
        outcome.fail("a front of no points")


def _checked(stage: Stage, found: Any, outcome: Outcome) -> None:
    run = stage.run
    same = not any(run.get(name) for name in ("metric", "numerics"))
    if same and not found.holds and found.broken is None:
        outcome.fail(f"check does not hold: {found}")
    if found.unmatched:
        outcome.fail(f"check finds {found.unmatched} no more")


def _applied(stage: Stage, model: Any, outcome: Outcome) -> None:
    model.save("new.mlpackage")
    _applied_package(stage, outcome)


def _applied_package(stage: Stage, outcome: Outcome) -> None:
    """What was applied gives what was found."""
    base = stage.run.searched
    samples = measures.shaped(Path(OUT) / "model.mlpackage", base, stage.samples)
    samples = measures.calibration(base, samples)
    found = measures.error("new.mlpackage", base, stage.source.predict, samples)
    limit = measures.limit(base, stage.budget)
    if found > limit:
        outcome.fail(f"applied: the loss is {found:.6g}, allowed {limit:.6g}")


def _exits(*codes: int) -> Any:
    def look(stage: Stage, code: int, text: str, outcome: Outcome) -> None:
        if code not in codes:
            outcome.fail(f"exit {code}: {text[-500:]}")
        elif stage.run.command == "apply":
            _applied_package(stage, outcome)

    return look


_FOUND = {
    "optimize": _optimized,
    "analyze": _analyzed,
    "pareto": _traded,
    "check": _checked,
    "apply": _applied,
}
_SHELL = {
    "optimize": _optimized_in_shell,
    "analyze": _exits(0),
    "pareto": _exits(0),
    "check": _exits(0, 1),
    "apply": _exits(0),
}
