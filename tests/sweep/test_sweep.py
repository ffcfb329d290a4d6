"""A hundred drawn runs, in make test-all. By hand: python -m tests.sweep --seed S --runs N."""

from __future__ import annotations

import pytest

from .worker import attempt, warm

RUNS = 100


@pytest.fixture(scope="session", autouse=True)
def warmed():
    warm()


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(RUNS))
def test_a_drawn_run_ends_as_it_must(seed):
    report = attempt(seed)
    assert not report.failures, str(report)
