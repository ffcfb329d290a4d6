"""``python -m tests.sweep --seed S --runs N``: drawn runs, by hand."""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from .worker import Report, described, sweep, warm


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--runs", type=int, default=100, help="how many, of the seeds that follow")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--only", type=int, help="the run of this seed alone")
    parser.add_argument("--verbose", action="store_true", help="show runs that pass as well")
    given = parser.parse_args()
    seeds = list(range(given.seed, given.seed + given.runs))
    seeds = seeds if given.only is None else [given.only]
    warm()

    def show(report: Report) -> None:
        if report.failures:
            print(report, flush=True)
        elif given.verbose or given.only is not None:
            print(f"{_took(report)} {report.kind}: {described(report.run)}", flush=True)

    reports = sweep(seeds, given.jobs, show)
    failed = [r for r in reports if r.failures]
    kinds = Counter(r.kind for r in reports)
    seconds = sum(r.seconds for r in reports)
    core = sum(r.core for r in reports)
    print(f"{len(reports)} runs, {len(failed)} failed, {seconds:.0f} s, {core:.0f} s of a core")
    print(", ".join(f"{n} {kind}" for kind, n in kinds.most_common()))
    for report in sorted(reports, key=lambda r: -r.core)[:10]:
        print(f"  {_took(report)}: {described(report.run)[:100]}")
    return 1 if failed else 0


def _took(report: Report) -> str:
    return f"seed {report.run.seed}, {report.seconds:.1f} s ({report.core:.1f} of a core)"


if __name__ == "__main__":
    sys.exit(main())
