"""All strategies side by side on the zoo, each on an evaluator of its own.

python -m benchmarks.strategies [--json FILE] [cases ...]

Ops kept in FP32, evaluations, forward-equivalents (measured op time over one forward of all
calibration samples) and seconds, on the calibration data, with 300 evaluations each.
``SegmentList`` is onnxconverter-common's own class, driven by the same evaluator as its
``auto_convert_mixed_precision`` drives it.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from onnxconverter_common.auto_mixed_precision import SegmentList

from benchmarks import zoo
from mpsearch.flows.job import samples_of
from mpsearch.options import STRATEGIES
from mpsearch.search import registry
from mpsearch.search.conflicts import lower_bound
from mpsearch.search.cost import Casts
from mpsearch.search.evaluations import Evaluations
from mpsearch.search.problem import Problem
from mpsearch.search.search import Search
from mpsearch.search.study import Study
from mpsearch.source.prepare import Prepared, prepare


def segment_list(search: Search) -> None:
    """The loop of ``auto_convert_mixed_precision``, without the conversion to ONNX."""
    segments = SegmentList(list(range(len(search.problem.units))))
    while (segment := segments.get_largest()) is not None:
        if search.judge(segments.get_nodes(segment), "segment").met:
            segment.good = True
        elif segment.size == 1:
            segment.bad = True
        else:
            segment.split()


def searching(prepared: Prepared, case: Any) -> Search:
    """A search on the calibration samples of a case."""
    problem = Problem.of_ops(prepared.ops, case.BUDGET, Casts(prepared.lowered))
    evaluator = prepared.evaluator()
    search = Search(problem, Evaluations(evaluator, Study()), samples_of(prepared, evaluator))
    search.judge_all_units()
    search.judge((), "ends")
    return search


def measure(prepared: Prepared, case: Any, strategy: Any) -> tuple[dict[str, Any], Search]:
    started = time.perf_counter()
    search = searching(prepared, case)
    if search.best is None or search.best.fp32:
        registry.run(strategy, search)
    assert search.best is not None
    row = {
        "kept": len(search.best.fp32),
        "evaluations": search.evaluations.precisions,
        "forwards": round(search.evaluations.evaluator.engine.forward_equivalents, 1),
        "seconds": round(time.perf_counter() - started, 1),
    }
    return row, search


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--without", nargs="*", default=[], help="Strategies to leave out.")
    parser.add_argument("--json", type=Path, help="Also append every row to this file.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    strategies: dict[str, Any] = {"SegmentList": segment_list}
    for entry in sorted(entry_points(group=STRATEGIES), key=lambda e: e.name):
        if entry.name not in ("exhaustive", *arguments.without):
            strategies[entry.name] = entry.load()
    print("| case (ops, budget) | " + " | ".join(strategies) + " | at least |")
    print("|---" * (len(strategies) + 2) + "|")
    for name, case in zoo.cases(arguments.cases).items():
        numerics = zoo.numerics(case)
        prepared = prepare(case.build(), case.samples(), numerics=numerics, heldout=0.25)
        cells, rows, bound = [], {}, None
        for label, strategy in strategies.items():
            row, search = measure(prepared, case, strategy)
            rows[label] = row
            numbers = f"{row['evaluations']}, {row['forwards']:.0f}, {row['seconds']:.0f} s"
            cells.append(f"{row['kept']} ({numbers})")
            if label == "greedy-optuna" and row["kept"]:
                bound = lower_bound(search)
        title = f"{name} ({len(prepared.ops)}, {case.BUDGET:g})"
        print(f"| {title} | {' | '.join(cells)} | {'-' if bound is None else bound} |", flush=True)
        if arguments.json:
            with arguments.json.open("a") as file:
                file.write(json.dumps({"case": name, "bound": bound, **rows}) + "\n")


if __name__ == "__main__":
    main()
