"""How much several processes help: the same search with one and with more, one after the other.

python -m benchmarks.jobs [--jobs 2] [architectures ...]

Architectures of benchmarks/architectures.py at their real size, on free cores, one thread for each
process. The results are compared as well: they must be the same but for what they cost.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

from benchmarks.architectures import ARCHITECTURES
from benchmarks.real import quiet

#: What two runs of the same search may differ in.
_COST = ("seconds", "forward_equivalents", "op_executions")
_BUDGET = 5e-3


def searched(name: str, jobs: int) -> dict[str, object]:
    """Seconds of a search, and what it found."""
    quiet()
    import torch

    import mpsearch

    torch.set_num_threads(1)
    model, samples = ARCHITECTURES[name](True)
    started = time.perf_counter()
    found = mpsearch.optimize(model, samples, _BUDGET, execution=mpsearch.Execution(jobs=jobs))
    seconds = time.perf_counter() - started
    content = {key: value for key, value in found.as_dict().items() if key not in _COST}
    return {"seconds": seconds, "content": content}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=["efficientnet", "regnet"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--one", type=int)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(searched(given.names[0], given.one)))
        return
    print(
        "| architecture | FP32 ops | evaluations | one process | processes | times as fast | same |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in given.names:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.jobs", name, "--one"]
        runs = []
        for jobs in (1, given.jobs):
            done = subprocess.run([*command, str(jobs)], capture_output=True, text=True, check=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
        (one, several), content = [run["seconds"] for run in runs], runs[0]["content"]
        same = "yes" if content == runs[1]["content"] else "NO"
        print(
            f"| {name} | {len(content['kept'])} | {content['evaluations']} | {one:.1f} s "
            f"| {given.jobs}: {several:.1f} s | {one / several:.2f} | {same} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
