"""What a result says at its top: what breaks, and what only rounds."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import mpsearch
from benchmarks import zoo


@pytest.mark.thorough
def test_what_overflows_is_told_from_what_rounds():
    case = zoo.cases(["t5_residual"])["t5_residual"]
    model, samples = zoo.drawn(case, 0, 12)
    found = mpsearch.optimize(model, samples, 3e-4)
    said = re.search(
        r"(\d+) of them cure what overflows \(error (\S+)\); (\d+) more", found.explanation
    )
    cures, error, more = int(said[1]), float(said[2]), int(said[3])
    assert cures + more == len(found.kept) and more > 0
    # With a budget above that error nothing but the cure is kept.
    assert len(mpsearch.optimize(model, samples, 1.3 * error).kept) == cures


@pytest.mark.thorough
def test_in_decibels_more_is_better():
    case = zoo.cases(["t5_residual"])["t5_residual"]
    model, samples = zoo.drawn(case, 0, 12)
    found = mpsearch.optimize(model, samples, 70.0, "snr")
    said = re.search(
        r"cures? what overflows \(snr (\S+)\); \d+ more buys? rounding up to 70", found.explanation
    )
    assert found.met and float(said[1]) < 70


def test_where_nothing_breaks_the_budget_that_needs_nothing_is_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8))
    draw = torch.Generator().manual_seed(0)
    samples = [torch.randn(1, 32, generator=draw) for _ in range(12)]
    found = mpsearch.optimize(model, samples, 1e-4)
    budget = re.search(r"a budget of (\S+) needs none", found.explanation)[1]
    assert found.kept and float(budget) > found.error_fp16
    assert not mpsearch.optimize(model, samples, float(budget)).kept
