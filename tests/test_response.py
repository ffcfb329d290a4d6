"""The response model: exact where errors add up, and modest where nothing is known."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from scipy.stats import spearmanr

from mpsearch.evaluation.sketch import Sketch
from mpsearch.search.response import Response

UNITS, NUMBERS = 8, 5


def _additive(seed: int):
    """Errors of sets where each unit cast adds a vector of its own."""
    random = np.random.default_rng(seed)
    effects = random.normal(size=(2, UNITS, NUMBERS))

    def error(kept, sample):
        return sum((effects[sample, u] for u in range(UNITS) if u not in kept), np.zeros(NUMBERS))

    return effects, error


def test_the_best_exchange_is_proposed_first_where_errors_add_up():
    """Against the true order of all exchanges of two for one, each unit having been changed once.

    The order is not exact: the model allows for errors that do not add up.
    """
    for seed in range(5):
        effects, error = _additive(seed)
        middle = frozenset(range(4))
        tried = [middle] + [middle ^ {u} for u in range(UNITS)]
        errors = {k: {(s, 0): error(k, s) for s in range(2)} for k in tried}
        squared = {u: float((effects[:, u] ** 2).sum(1).max()) for u in range(UNITS)}
        response = Response(middle, errors, squared)

        def worst(kept, error=error):
            return max(float(np.sum(error(kept, s) ** 2)) for s in range(2))

        proposed = list(response.exchanges([1.0] * UNITS))
        assert len(set(proposed)) == len(proposed)
        assert all(len(k) < len(middle) for k in proposed)
        swaps = [k for k in proposed if (len(middle - k), len(k - middle)) == (2, 1)]
        every = {
            middle.difference(out) | {put}
            for out in itertools.combinations(sorted(middle), 2)
            for put in range(4, UNITS)
        }
        assert set(swaps) == every
        agreement = spearmanr(range(len(swaps)), [worst(k) for k in swaps]).statistic
        assert agreement > 0.7, (seed, agreement)
        assert sorted(every, key=worst).index(swaps[0]) <= 3, seed


def test_costs_decide_what_is_cheaper():
    _, error = _additive(0)
    middle = frozenset({0, 1})
    errors = {middle: {(0, 0): error(middle, 0)}}
    response = Response(middle, errors, dict.fromkeys(range(UNITS), 1.0))
    cost = [5.0, 1.0] + [3.0] * (UNITS - 2)
    for kept in response.exchanges(cost):
        assert sum(cost[u] for u in kept) < sum(cost[u] for u in middle)


def test_a_sketch_keeps_norms_and_refuses_what_is_not_finite():
    generator = torch.Generator().manual_seed(0)
    reference = {"y": torch.randn(64, 64, generator=generator)}
    sketch = Sketch(0)
    error = torch.randn(64, 64, generator=generator)
    short = sketch(reference, {"y": reference["y"] + 0.01 * error})
    wanted = 0.01 * float(error.norm() / reference["y"].norm())
    assert short.shape == (256,)
    assert abs(np.linalg.norm(short) - wanted) < 0.15 * wanted
    assert sketch(reference, {"y": torch.full((64, 64), torch.inf)}) is None
