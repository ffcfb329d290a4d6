"""Run Apple's tests: ``python -m tests.conformance [ops|torch] [pytest options]``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mpsearch._ct import ct

SUITES = {
    "ops": "converters/mil/mil/ops/tests",
    "torch": "converters/mil/frontend/torch/test",
}


def main(arguments: list[str]) -> int:
    suite = arguments.pop(0) if arguments and arguments[0] in SUITES else "ops"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return pytest.main(
        [
            str(Path(ct.__file__).parent / SUITES[suite]),
            *("-p", "tests.conformance.plugin", "-p", "no:cacheprovider"),
            *("-q", "--no-header", "-W", "ignore", "--tb=short", "--rootdir", "."),
            *("-c", os.devnull),
            *arguments,
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
