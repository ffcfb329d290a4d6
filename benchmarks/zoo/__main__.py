"""The zoo, case by case: reproduced, diagnosed, mended.

python -m benchmarks.zoo [cases ...]

"Right" means that one of the three worst ops is of a type where the report's users found the
trouble, with a verdict that agrees with what they found.
"""

from __future__ import annotations

import argparse

import torch

import mpsearch
from benchmarks import zoo


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = ["case", "report", "numerics", "all FP16", "budget", "FP32 ops", "error", "held-out"]
    columns += ["worst op", "verdict", "right"]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    right = total = 0
    for name, case in zoo.cases(arguments.cases).items():
        numerics = zoo.numerics(case)
        found = mpsearch.analyze(case.build(), case.samples(), numerics=numerics)
        result = mpsearch.optimize(case.build(), case.samples(), case.BUDGET, numerics=numerics)
        worst = found.culprits[:3]
        agrees = any(o.verdict in case.CAUSES and o.type in case.CULPRITS for o in worst)
        agrees = agrees or not (worst or case.CAUSES)
        right, total = right + agrees, total + 1
        cells = [name, case.SOURCE, numerics, f"{result.error_fp16:.2g}", f"{case.BUDGET:g}"]
        cells += [f"{len(result.fp32_ops)} of {result.candidate_ops}", f"{result.error:.2g}"]
        cells += ["-" if result.heldout_error is None else f"{result.heldout_error:.2g}"]
        cells += [worst[0].type if worst else "-", worst[0].verdict if worst else "fine"]
        print("| " + " | ".join([*cells, "yes" if agrees else "no"]) + " |", flush=True)
    print(f"\n{right} of {total} right")


if __name__ == "__main__":
    main()
