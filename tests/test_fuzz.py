"""A slice of the fuzz run; python -m tests.fuzz runs ten thousand programs."""

from __future__ import annotations

import collections

import numpy as np

from mpsearch._ct import quiet
from tests import fuzz


def test_random_programs_agree_with_their_truth():
    with quiet(), np.errstate(all="ignore"):
        tally = collections.Counter(fuzz.one(seed) for seed in range(20_000, 20_400))
    assert tally["folded"] > 120
    assert tally["family"] > 150
    assert tally["refused"] < 100
