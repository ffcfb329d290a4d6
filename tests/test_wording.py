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
        r"(\d+) of them cure what overflows \(error (\S+)\);(.*)\.$", found.explanation, re.M
    )
    cures, error = int(said[1]), float(said[2])
    more = sum(map(int, re.findall(r"(\d+) more", said[3])))
    assert cures + more == len(found.kept) and more > 0
    # With a budget above that error nothing but the cure is kept.
    assert len(mpsearch.optimize(model, samples, 1.3 * error).kept) == cures


@pytest.mark.thorough
def test_in_decibels_more_is_better():
    case = zoo.cases(["t5_residual"])["t5_residual"]
    model, samples = zoo.drawn(case, 0, 12)
    found = mpsearch.optimize(model, samples, 70.0, "snr")
    said = re.search(r"cures? what overflows \(snr (\S+)\); \d+ more", found.explanation)
    assert found.met and float(said[1]) < 70
    found = mpsearch.optimize(model, samples, 82.0, "snr")
    shared = r"\d+ more (keeps? the rounding of all above 82|breaks? it with a few others)"
    assert re.search(shared, found.explanation)


def test_where_nothing_breaks_the_budget_that_needs_nothing_is_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8))
    draw = torch.Generator().manual_seed(0)
    samples = [torch.randn(1, 32, generator=draw) for _ in range(12)]
    found = mpsearch.optimize(model, samples, 1e-4)
    budget = re.search(r"a budget of (\S+) needs none", found.explanation)[1]
    assert found.kept and float(budget) > found.error_fp16
    assert not mpsearch.optimize(model, samples, float(budget)).kept


class Masked(nn.Module):
    """Attention whose mask, an input, is beyond FP16's range."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x, keep):
        scores = self.query(x) @ self.key(x).transpose(1, 2) + (1 - keep) * -1e9
        return torch.softmax(scores, -1) @ self.value(x)


def test_that_a_mask_may_leave_nothing_is_said():
    draw = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(8):
        keep = (torch.rand(1, 1, 8, generator=draw) > 0.3).float()
        samples.append((torch.randn(1, 8, 16, generator=draw), keep))
    found = mpsearch.optimize(Masked().eval(), samples, 1e-2)
    assert not found.kept and found.absorbed_overflows[0].masks
    assert any("leaves something unmasked" in note for note in found.notes)
    nothing = (samples[0][0], torch.zeros(1, 1, 8))
    assert not torch.isfinite(
        torch.tensor(mpsearch.check(found.config, Masked().eval(), [nothing]).error)
    )


def test_ops_that_break_alone_buy_no_rounding():
    class Centered(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(16, 64), nn.Linear(64, 8)

        def forward(self, x):
            y = self.first(x) + 30.0
            variance = (y * y).mean(-1, keepdim=True) - y.mean(-1, keepdim=True) ** 2
            return self.last((y - 30.0) * torch.rsqrt(variance + 1e-5)) + torch.exp(12 + x[:, :1])

    draw = torch.Generator().manual_seed(0)
    samples = [torch.rand(1, 16, generator=draw) * 0.3 for _ in range(8)]
    found = mpsearch.optimize(Centered().eval(), samples, 1e-3, "max_abs")
    alone = [op for op in found.kept if op.sensitivity is None or op.sensitivity > 1e-3]
    counts = re.search(
        r"(\d+) of them cures? what overflows .*; (\d+) more each break", found.explanation
    )
    assert sum(map(int, counts.groups())) == len(alone)
