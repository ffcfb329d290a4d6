"""A few of the trials that take long; ``python -m tests.trials.kills`` and ``corrupt`` do more."""

from __future__ import annotations

import random

import pytest

from . import corrupt, kills

pytestmark = pytest.mark.thorough


def test_runs_ended_at_random_instants_lose_nothing_and_leave_nothing():
    wrong = kills.campaign({"kill": 2, "int": 2, "term": 2, "double": 2}, seed=11, say=str)
    assert wrong == []


def test_corrupted_files_end_in_a_line(tmp_path):
    corrupt.make(tmp_path)
    wrong = {}
    for round_ in range(3):
        for kind in corrupt.KINDS:
            found = corrupt.trial(tmp_path, kind, random.Random(f"tests/{round_}/{kind}"))
            if found.wrong is not None:
                wrong[round_, kind] = found.wrong
    assert wrong == {}
