"""FP32 ops of ``optimize`` beside a long random local search that asks the same of a set.

python -m benchmarks.price [--evaluations 20000] [--seconds 600] [--samples 16 64] [--fresh 500]
                           [--base REV] [--json FILE] case ...

The local search is given all samples, none held out, and the perturbed ones that ``optimize``
searches on; it takes only sets that hold by the same code (:mod:`mpsearch.search.criterion`) and
lack no op that leaves FP16's range. "Over" is the share of fresh inputs that break the budget,
"lost" the share that is not finite or beyond ten times the budget. With ``--base``, ``optimize`` of
another version stands beside. Cases are those of :mod:`benchmarks.holds`, and ``flips:N`` and
``mixed:N`` (:mod:`benchmarks.unseen`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.against import HERE, trees
from benchmarks.holds import in_a_process, inputs, judged, numerics
from mpsearch.ending import Stop
from mpsearch.evaluation.reach import Reach
from mpsearch.flows.job import pool_size, samples_of
from mpsearch.search.cost import Casts
from mpsearch.search.evaluations import Evaluations
from mpsearch.search.problem import Problem, UnitSet, units
from mpsearch.search.risk import Range
from mpsearch.search.search import Search
from mpsearch.search.study import Study
from mpsearch.source.prepare import prepare


def searching(name: str, seed: int, count: int, evaluations: int) -> Search:
    """A search of a case, about to begin; all its samples are given."""
    model, budget, given, _ = inputs(name, seed, count, 1)
    prepared = prepare(model, given, numerics=numerics(name), redraw=pool_size)
    evaluator = prepared.evaluator(perturbed=True)
    reach = Reach(evaluator.engine)
    for _ in reach.run(range(count)):
        pass
    range_ = Range(evaluator.engine, reach)
    refused, ops = frozenset(range_.refused), prepared.ops
    problem = Problem(
        units(ops, [i for i in range(len(ops)) if i not in refused]),
        ops,
        budget,
        refused,
        casts=Casts(prepared.lowered),
        required=refused,
        harmless=range_.harmless,
    )
    samples = samples_of(prepared, evaluator)
    search = Search(problem, Evaluations(evaluator, Study()), samples, trials=evaluations)
    search.judge_all_units()
    return search


def local_search(search: Search, seconds: float, seed: int = 0) -> UnitSet:
    """Cast in random order, blocks of halving size; put one to four units in, and cast again."""
    draw, until = random.Random(seed), time.monotonic() + seconds
    every = search.problem.all_units

    def holds(fp32: UnitSet) -> bool:
        if time.monotonic() > until:
            raise Stop
        return search.judge(fp32, "local").met

    def cast(fp32: UnitSet) -> UnitSet:
        size = max(len(fp32) // 4, 1)
        while True:
            order = sorted(fp32)
            draw.shuffle(order)
            for i in range(0, len(order), size):
                tried = fp32.difference(order[i : i + size])
                fp32 = tried if holds(tried) else fp32
            if size == 1:
                return fp32
            size //= 2

    best, misses = every, 0
    with contextlib.suppress(Stop):
        best = cast(every)
        # A set of which every neighbor is known asks for nothing new: stop after many of those.
        while misses < 2000 and every - best:
            before, outside = search.remaining, sorted(every - best)
            added = draw.sample(outside, min(draw.randint(1, 4), len(outside)))
            found = cast(best.union(added))
            best = found if len(found) <= len(best) else best
            misses = misses + 1 if search.remaining == before else 0
    found_ = search.best
    return best if found_ is None else found_.fp32


def locally(name: str, seed: int, count: int, evaluations: int, seconds: float) -> dict[str, Any]:
    """What the local search finds."""
    started = time.perf_counter()
    search = searching(name, seed, count, evaluations)
    precision = search.problem.precision(local_search(search, seconds))
    return {
        "ops": [search.problem.ops[i].name for i in precision],
        "executions": search.evaluations.evaluator.engine.executions,
        "seconds": round(time.perf_counter() - started, 1),
        "coverage": None,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--evaluations", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=600.0, help="for one local search")
    parser.add_argument("--samples", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--fresh", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", help="another version to stand beside")
    parser.add_argument("--json", type=Path, help="where to put what was measured, line by line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    header = ["case", "samples", "search", "FP32 ops", "over", "lost", "op executions", "seconds"]
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    with tempfile.TemporaryDirectory() as folder:
        roots = trees(arguments.base or "HEAD", Path(folder))
        if arguments.base is None:
            roots = {"now": roots["now"]}
        try:
            for name in arguments.cases:
                for count in arguments.samples:
                    asked = (name, arguments.seed, count, arguments.fresh)
                    found = {label: in_a_process(root, *asked) for label, root in roots.items()}
                    if arguments.evaluations:
                        found["local"] = locally(
                            *asked[:3], arguments.evaluations, arguments.seconds
                        )
                    for label, made in found.items():
                        row = judged(*asked, made)
                        shown = [f"{row['kept']} of {row['of']}", f"{row['over']:.1%}"]
                        shown += [f"{row['lost']:.1%}", f"{row['executions']:,}"]
                        shown.append(f"{row['seconds']:g}")
                        print(f"| {' | '.join([name, str(count), label, *shown])} |", flush=True)
                        if arguments.json is not None:
                            line = {"case": name, "samples": count, "version": label, **row}
                            with arguments.json.open("a") as file:
                                file.write(json.dumps(line) + "\n")
        finally:
            command = ["git", "worktree", "remove", "--force", str(Path(folder) / "worktree")]
            subprocess.run(command, check=False, cwd=HERE)


if __name__ == "__main__":
    main()
