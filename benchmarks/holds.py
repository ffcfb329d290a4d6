"""Do the sets hold on inputs that nobody has seen?

python -m benchmarks.holds [--counts 8 16 64 256] [--fresh 500] [--seed 0] [--base REV] [cases ...]
python -m benchmarks.holds planted:0 planted:1 ...

Every case of the zoo draws as many inputs as are asked for; they are shuffled, so many are given to
``mpsearch.optimize`` with its defaults, and the set that it finds is run on the others, which
nothing was chosen by. "Over" is the share of those that break the budget, "lost" the share that is
not finite or beyond ten times the budget. With ``--base`` the search of another version, from a git
worktree, stands beside; the inputs and the judge are the same. ``planted:SEED`` and
``encoder:SEED`` are small models of a family (:mod:`benchmarks.families`), which has one row in the
tables.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.against import HERE, trees


def inputs(name: str, seed: int, count: int, fresh: int) -> tuple[Any, float, list[Any], list[Any]]:
    """A case's model and budget, the samples given, and the fresh ones."""
    from benchmarks import families, unseen, zoo

    if name.startswith(("flips:", "mixed:")):
        model, budget, drawn = unseen.drawn(name, seed, count + fresh)
    elif ":" in name:
        model, budget, drawn = families.drawn(name, seed, count + fresh)
    else:
        case = zoo.cases([name])[name]
        model, drawn = zoo.drawn(case, seed, 1)[0], zoo.drawn(case, seed, count + fresh)[1]
        budget = case.BUDGET
        random.Random(seed).shuffle(drawn)
    return model, budget, drawn[:count], drawn[count:]


def numerics(name: str) -> Any:
    """What a case is judged by."""
    from benchmarks import zoo

    return "ieee" if ":" in name else zoo.numerics(zoo.cases([name])[name])


def searched(name: str, seed: int, count: int, fresh: int) -> dict[str, Any]:
    """What the ``mpsearch`` on the path finds."""
    import mpsearch

    model, budget, given, _ = inputs(name, seed, count, fresh)
    optimize = mpsearch.optimize  # what it imports is not what it costs
    started = time.perf_counter()
    result = optimize(model, given, budget, numerics=numerics(name))
    return {
        "ops": result.fp32_ops,
        "executions": result.op_executions,
        "seconds": round(time.perf_counter() - started, 1),
        "coverage": getattr(result, "coverage", None),
    }


def judged(name: str, seed: int, count: int, fresh: int, found: dict[str, Any]) -> dict[str, Any]:
    """How a set does on the fresh inputs."""
    from mpsearch.program.precision import Precision
    from mpsearch.source.prepare import prepare

    model, budget, _, unseen = inputs(name, seed, count, fresh)
    prepared = prepare(model, unseen, "rel_l2", numerics(name))
    kept = {op.index for op in prepared.ops if op.name in set(found["ops"])}
    evaluator = prepared.evaluator(cache_bytes=0)
    precision = Precision.of(kept, len(prepared.ops))
    run = evaluator.evaluate_together(precision, range(len(unseen)))
    losses = sorted(evaluation.loss for evaluation in run)
    over, lost = (sum(loss > at for loss in losses) for at in (budget, 10 * budget))
    return {
        "kept": len(kept),
        "of": len(prepared.ops),
        "over": over / len(losses),
        "lost": lost / len(losses),
        "median": losses[len(losses) // 2] / budget,
        "worst": losses[-1] / budget,
        **{key: found[key] for key in ("executions", "seconds", "coverage")},
    }


def in_a_process(root: Path, *arguments: Any) -> dict[str, Any]:
    """The search of the version under ``root``."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.holds", "--one"]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{HERE}", "OMP_NUM_THREADS": "1"}
    command += [json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def shown(row: dict[str, Any]) -> list[str]:
    """A row's cells; errors over the budget."""
    worst = row["worst"]
    return [
        f"{row['kept']} of {row['of']}",
        f"{row['over']:.1%}",
        f"{row['lost']:.1%}",
        f"{row['median']:.2f}",
        "inf" if math.isinf(worst) else f"{worst:.3g}",
        "-" if row["coverage"] is None else f"{row['coverage']:.2f}",
        f"{row['executions']:,}",
        f"{row['seconds']:g}",
    ]


def tables(paths: list[Path]) -> str:
    """What was measured of two versions, one table for each number of samples."""
    rows: dict[tuple[int, str], dict[str, dict[str, Any]]] = {}
    families: dict[tuple[int, str, str], list[dict[str, Any]]] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            family, _, number = row["case"].partition(":")
            if number:
                families.setdefault((row["samples"], family, row["version"]), []).append(row)
            else:
                rows.setdefault((row["samples"], family), {})[row["version"]] = row
    for (count, family, version), models in families.items():
        rows.setdefault((count, f"{family} ({len(models)})"), {})[version] = together(models)
    base = next((v for found in rows.values() for v in found if v != "now"), "-")
    header = ["case", "ops", "FP32 ops", "over", "lost", "worst/budget", "op executions"]
    out = []
    for count in sorted({count for count, _ in rows}):
        title = " | ".join([*header, "stated"])
        out += [f"{count} samples, {base} : now", "", f"| {title} |", "|---" * 8 + "|"]
        for (samples, case), found in sorted(rows.items()):
            if samples != count or "now" not in found:
                continue
            pair = [found.get(base), found["now"]]
            shown_ = [
                " : ".join("-" if row is None else form(row[key]) for row in pair)
                for key, form in FORMS.items()
            ]
            now = found["now"]
            stated = "-" if now["coverage"] is None else f"{math.floor(100 * now['coverage'])}%"
            out.append(f"| {case} | {now['of']} | {' | '.join(shown_)} | {stated} |")
        out.append("")
    return "\n".join(out)


def together(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Several models as one row."""
    sums = {key: sum(row[key] for row in rows) for key in ("kept", "of", "executions")}
    means = {key: sum(row[key] for row in rows) / len(rows) for key in ("over", "lost")}
    stated = [row["coverage"] for row in rows]
    return {
        **sums,
        **means,
        "worst": max(row["worst"] for row in rows),
        "coverage": None if None in stated else min(stated),
    }


FORMS: dict[str, Any] = {
    "kept": str,
    "over": "{:.1%}".format,
    "lost": "{:.1%}".format,
    "worst": "{:.2g}".format,
    "executions": "{:,}".format,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--counts", type=int, nargs="*", default=[8, 16, 64, 256])
    parser.add_argument("--fresh", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", help="another version to stand beside")
    parser.add_argument("--only", help="of the two versions, run this alone")
    parser.add_argument("--json", type=Path, help="where to put what was measured, line by line")
    parser.add_argument("--tables", type=Path, nargs="*", help="show what such files hold")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.tables:
        print(tables(arguments.tables))
        return
    if arguments.one:
        print(json.dumps(searched(*json.loads(arguments.one))))
        return
    from benchmarks import zoo

    wanted = arguments.cases or [*zoo.cases(), *(f"planted:{number}" for number in range(16))]
    header = ["case", "samples", "version", "FP32 ops", "over", "lost", "median/budget"]
    header += ["worst/budget", "coverage", "op executions", "seconds"]
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    with tempfile.TemporaryDirectory() as folder:
        roots = trees(arguments.base or "HEAD", Path(folder))
        if arguments.base is None or arguments.only:
            roots = {k: v for k, v in roots.items() if k == (arguments.only or "now")}
        try:
            for name in wanted:
                for count in arguments.counts:
                    asked = (name, arguments.seed, count, arguments.fresh)
                    for label, root in roots.items():
                        row = judged(*asked, in_a_process(root, *asked))
                        cells = [name, str(count), label, *shown(row)]
                        print(f"| {' | '.join(cells)} |", flush=True)
                        if arguments.json is not None:
                            with arguments.json.open("a") as file:
                                line = {"case": name, "samples": count, "version": label, **row}
                                file.write(json.dumps(line) + "\n")
        finally:
            worktree = str(Path(folder) / "worktree")
            command = ["git", "worktree", "remove", "--force", worktree]
            subprocess.run(command, check=False, cwd=HERE)


if __name__ == "__main__":
    main()
