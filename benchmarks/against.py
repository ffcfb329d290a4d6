"""This version against another one, side by side: FP32 ops, evaluations, forwards, seconds, memory.

python -m benchmarks.against [--base e337ad4] [--rounds 1] [cases of the zoo ...]

``mpsearch.optimize`` on every case, each run in a process of its own, the two versions one after
the other. Both are asked what versions before unseen inputs counted can answer: the fewest ops for
the samples given, wherever they overflow, with nothing held out. The cases are those of this tree;
of the other, only ``mpsearch`` and ``strategies`` are taken, from a git worktree. Memory is the
peak of the process. With several rounds, the median of the ratios. A case that a version does not
convert is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
COLUMNS = ("kept", "evaluations", "forwards", "seconds", "MiB")


def one(name: str, root: str) -> dict[str, Any]:
    """Run one case with the ``mpsearch`` under ``root``."""
    import resource

    import torch

    import mpsearch
    from benchmarks import zoo

    assert mpsearch.__file__ and mpsearch.__file__.startswith(root), mpsearch.__file__
    torch.set_num_threads(1)
    case = zoo.cases([name])[name]
    model, samples = case.build(), case.samples()
    optimize = mpsearch.optimize  # what it imports is not what it costs
    asked: dict[str, Any] = {"numerics": zoo.numerics(case), "heldout": 0.0}
    if hasattr(mpsearch, "Constraints"):  # the others are asked for no more than this
        asked["constraints"] = mpsearch.Constraints(objective="calibration", tolerate_overflow=True)
    started = time.perf_counter()
    result = optimize(model, samples, case.BUDGET, **asked)
    return {
        "kept": len(result.fp32_ops),
        "evaluations": result.evaluations,
        "forwards": round(result.forward_equivalents, 1),
        "seconds": round(time.perf_counter() - started, 2),
        "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def in_a_process(name: str, root: Path) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.against", "--one", name]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{HERE}", "OMP_NUM_THREADS": "1"}
    command += ["--root", str(root)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment, cwd=root
    )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def trees(base: str, folder: Path) -> dict[str, Path]:
    """Folders that hold nothing but ``mpsearch``, of the other version and of this one."""
    old = folder / "worktree"
    subprocess.run(["git", "worktree", "add", "-q", "-f", str(old), base], check=True, cwd=HERE)
    found = {}
    for label, source in ((base, old), ("now", HERE)):
        root = folder / label
        (root / "mpsearch").mkdir(parents=True)
        for path in (source / "mpsearch").iterdir():
            (root / "mpsearch" / path.name).symlink_to(path)
        if not (source / "mpsearch" / "strategies").exists():
            (root / "mpsearch" / "strategies").symlink_to(source / "strategies")
        found[label] = root
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--base", default="e337ad4")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one, arguments.root)))
        return
    from benchmarks import zoo

    names = list(zoo.cases(arguments.cases))
    ratios: dict[str, list[float]] = {"seconds": [], "MiB": []}
    print(f"| case | {' | '.join(f'{c} {arguments.base} : now' for c in COLUMNS)} |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    with tempfile.TemporaryDirectory() as folder:
        roots = trees(arguments.base, Path(folder))
        try:
            for name in names:
                rows: dict[str, list[dict[str, Any]]] = {label: [] for label in roots}
                try:
                    for _ in range(arguments.rounds):
                        for label, root in roots.items():
                            rows[label].append(in_a_process(name, root))
                except subprocess.CalledProcessError as error:
                    print(f"{name}: {error.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                    continue
                middle = {
                    label: {c: statistics.median(row[c] for row in found) for c in COLUMNS}
                    for label, found in rows.items()
                }
                old, new = middle[arguments.base], middle["now"]
                for column, found in ratios.items():
                    found.append(new[column] / old[column])
                cells = [f"{old[c]:g} : {new[c]:g}" for c in COLUMNS]
                print(f"| {name} | {' | '.join(cells)} |", flush=True)
        finally:
            worktree = str(Path(folder) / "worktree")
            command = ["git", "worktree", "remove", "--force", worktree]
            subprocess.run(command, check=False, cwd=HERE)
    for column, found in ratios.items():
        print(
            f"\n{column}, now over {arguments.base}: median {statistics.median(found):.2f}, "
            f"largest {max(found):.2f}"
        )


if __name__ == "__main__":
    main()
