"""Ends runs at random instants, over an empty folder and over a former result.

    python -m tests.trials.kills --kill 200 --int 50 --term 50 --double 20

After each: the former or the new result is whole; where a set was known, SIGINT and SIGTERM have it
written; a complete former result is never replaced by what was cut short; a run with ``--resume``
ends with the result of an unbroken one, evaluates nothing again, and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import mpsearch

from .harness import Outcome, run

MODEL, DATA = "tests.trials.slow:build", "tests.trials.slow:samples"
ARGV = ["optimize", MODEL, "--inputs", DATA, "--budget", "1e-3", "-o", "out", "--json"]
#: What a run prints once it has left the conversion behind, with its place in the bar's text.
PARTS = {
    "manifest.json",
    "model.mlpackage",
    "op_selector.py",
    "precision.json",
    "report.html",
    "result.json",
    "study.db",
}
#: What two runs of the same search may differ in: what they cost.
COST = ("seconds", "forward_equivalents", "op_executions")


def whole(folder: Path) -> str | None:
    """What is wrong with a written result; None where it is whole."""
    parts = {p.name for p in folder.iterdir()} - {".search"}
    if parts != PARTS and not (folder.name == "out" and not parts):
        return f"parts {sorted(parts)}"
    if not parts:
        return None
    result = json.loads((folder / "result.json").read_text())
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    files = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    there = {p.as_posix() for p in files if p.parts[0] != ".search"}
    if there != set(listed):
        return f"files {there ^ set(listed)}"
    if not (folder / "report.html").read_text().rstrip().endswith("</html>"):
        return "the report is cut off"
    mpsearch.Executor(folder / "model.mlpackage")
    selector: dict[str, object] = {}
    exec(compile((folder / "op_selector.py").read_text(), "op_selector.py", "exec"), selector)
    if set(selector["FP32_OPS"]) != set(result["fp32_ops"]):  # type: ignore[call-overload]
        return "op_selector.py is of another result"
    return None


def trial(
    signals: Sequence[int], former: Path | None, unbroken: Path, longest: float, seed: str
) -> tuple[str, int, str | None]:
    """One run, ended after a part of ``longest`` seconds: what came of it, how many evaluations
    were made twice, and what is wrong."""
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="kill-") as scratch:
        here, tmp = Path(scratch) / "here", Path(scratch) / "tmp"
        here.mkdir(), tmp.mkdir()
        out = here / "out"
        if former is not None:
            shutil.copytree(former, out)
        before = None if former is None else (out / "result.json").read_bytes()
        known = Path(scratch) / "known"
        os.environ["MPSEARCH_TRIAL_KNOWN"] = str(known)
        was_known: list[bool] = []

        def end(process: int) -> None:
            time.sleep(generator.uniform(0.02, longest))
            for i, number_ in enumerate(signals):
                if i:
                    time.sleep(generator.uniform(0.0, 0.3))
                was_known.append(known.exists())
                os.kill(process, number_)

        outcome = run(ARGV, here, tmp, 120.0, end)
        came, wrong = _judge(outcome, out, before, bool(was_known and was_known[0]), signals)
        if wrong is None:
            wrong = _resumed(here, tmp, out, unbroken)
        evaluated = Path(f"{known}.evaluated")
        asked = evaluated.read_text().splitlines() if evaluated.exists() else []
        twice = len(asked) - len(set(asked))
        # Of a set that was under way, a process that is killed stores nothing.
        if wrong is None and twice and signals[0] != signal.SIGKILL:
            wrong = f"{twice} evaluations were made twice"
    return came, twice, wrong


def _judge(
    outcome: Outcome, out: Path, before: bytes | None, known: bool, signals: Sequence[int]
) -> tuple[str, str | None]:
    beside = out.with_name("out-interrupted")
    for folder in (out, beside):
        if folder.exists() and (problem := whole(folder)) is not None:
            return "broken", f"{folder.name}: {problem}"
    if before is not None and not (out / "result.json").exists():
        return "lost", "the former result is gone"
    there = (out / "result.json").exists()
    changed = there and (out / "result.json").read_bytes() != before
    if signals[0] == signal.SIGKILL:
        return ("new" if changed else "former or none"), None
    if outcome.code == -signals[0] and not (known or changed or beside.exists()):
        return "before it listened", None  # while Python was starting: the system's own doing
    if outcome.code not in (0, 130):
        return "code", f"exit code {outcome.code}: {outcome.stderr[-300:]}"
    status = json.loads((out / "result.json").read_text())["status"] if there else ""
    if before is not None and changed and status == "interrupted":
        return "replaced", "an interrupted result has replaced a complete one"
    if outcome.code == 0:
        return "finished", None if changed else "exit code 0, and nothing was written"
    if known and not (changed or beside.exists()):
        return "lost", f"a set was known, and none was written: {outcome.stderr[-300:]}"
    if outcome.litter:
        return "litter", f"TMPDIR holds {outcome.litter}"
    return ("written" if changed or beside.exists() else "nothing known"), None


def _resumed(here: Path, tmp: Path, out: Path, unbroken: Path) -> str | None:
    """That going on ends as an unbroken run, and that nothing of any is left but results."""
    outcome = run([*ARGV, "--resume"], here, tmp, 120.0)
    if outcome.code != 0:
        return f"--resume: exit code {outcome.code}: {outcome.stderr[-300:]}"
    if outcome.litter or (problem := whole(out)) is not None:
        return f"--resume: {outcome.litter or problem}"
    a, b = (json.loads((folder / "result.json").read_text()) for folder in (out, unbroken))
    differ = [key for key in a if key not in COST and a[key] != b[key]]
    if differ:
        return f"--resume: another result: {differ}"
    litter = {p.name for p in here.iterdir()} - {"out", "out-interrupted"}
    litter |= {p.name for p in out.iterdir()} - PARTS
    return f"litter {litter}" if litter else None


def campaign(counts: dict[str, int], seed: int, say: Callable[[str], object] = print) -> list[str]:
    """Run all trials; returns what was wrong."""
    kinds = {
        "kill": [signal.SIGKILL],
        "int": [signal.SIGINT],
        "term": [signal.SIGTERM],
        "double": [signal.SIGINT, signal.SIGINT],
    }
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="former-") as folder:
        here, tmp = Path(folder) / "here", Path(folder) / "tmp"
        here.mkdir(), tmp.mkdir()
        first = [run(ARGV, here, tmp) for _ in range(2)]
        assert all(outcome.code == 0 for outcome in first), first[0].stderr
        longest = 0.95 * first[1].seconds
        former = here / "out"
        for kind, count in counts.items():
            tally: Counter[str] = Counter()
            again = 0
            for i in range(count):
                place = former if i % 2 else None
                came, twice, problem = trial(
                    kinds[kind], place, former, longest, f"{seed}/{kind}/{i}"
                )
                tally[came] += 1
                again += twice
                if problem is not None:
                    wrong.append(f"{kind} {i}: {problem}")
            say(f"{kind}: {count} runs of {longest:.1f} s: {dict(tally)}; evaluated twice: {again}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for kind, count in (("kill", 200), ("int", 50), ("term", 50), ("double", 20)):
        parser.add_argument(f"--{kind}", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    seed = options.pop("seed")
    wrong = campaign(options, seed)
    print("\n".join(wrong) or "nothing wrong")
    return min(len(wrong), 1)


if __name__ == "__main__":
    sys.exit(main())
