"""Incremental evaluation gives what evaluation afresh gives, in less."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import mpsearch
from mpsearch import options
from mpsearch.package import emission, verification
from mpsearch.program.precision import Precision
from mpsearch.search.cost import Casts
from mpsearch.search.rounding_hooks import rounding_model_of
from mpsearch.source.prepare import prepare
from tests.models import batches, net
from tests.planted import Planted, budget, samples


def vectors(count, ops, seed=0):
    random = np.random.default_rng(seed)
    return [Precision.of(np.flatnonzero(random.random(ops) < 0.5), ops) for _ in range(count)]


@pytest.mark.parametrize("cache_bytes", [None, 20_000, 0])
def test_same_losses_with_any_cache(cache_bytes):
    prepared = prepare(net(), batches())
    incremental = prepared.evaluator(cache_bytes=cache_bytes)
    for vector in vectors(12, len(prepared.ops)):
        for sample in range(incremental.samples):
            fresh = prepared.evaluator().evaluate(vector, sample)
            assert incremental.evaluate(vector, sample).loss == fresh.loss
    if cache_bytes is not None:
        assert incremental.engine._memory.used <= cache_bytes


def test_results_do_not_depend_on_the_calls_before():
    """Losses, non-finite ops and sketched errors, in any order, one by one or together."""
    prepared = prepare(Planted(0).eval(), samples(0))
    one, other = prepared.evaluator(), prepared.evaluator(cache_bytes=0)
    calls = [(v, s) for v in vectors(6, len(prepared.ops)) for s in range(one.samples)]
    found = {(v.fp32, s): one.evaluate(v, s) for v, s in calls}
    for vector, sample in reversed(calls):
        again, known = other.evaluate(vector, sample), found[vector.fp32, sample]
        assert (again.loss, again.nonfinite) == (known.loss, known.nonfinite)
        assert all(np.array_equal(a, b) for a, b in zip(again.errors, known.errors, strict=True))
    for vector in {v.fp32: v for v, _ in calls}.values():
        every = list(one.evaluate_together(vector, range(one.samples)))
        for sample, together in enumerate(every):
            known = found[vector.fp32, sample]
            assert (together.loss, together.nonfinite) == (known.loss, known.nonfinite)
    assert any(found[key].nonfinite for key in found)


def test_a_difference_at_the_end_runs_little():
    prepared = prepare(net(), batches())
    evaluator = prepared.evaluator()
    ops = len(prepared.ops)
    first = evaluator.evaluate(Precision.all_fp32(ops), 0)
    last = evaluator.evaluate(Precision.of(range(ops - 1), ops), 0)
    again = evaluator.evaluate(Precision.all_fp32(ops), 0)
    assert first.executions >= ops
    assert last.executions == 1
    assert again.executions == 0


def test_bit_equal_results_stop_a_difference():
    """A value that FP16 holds exactly is the same whichever precision the op has."""

    class Exact(torch.nn.Module):
        def forward(self, x):
            return torch.tanh(torch.tanh(x * 2.0))

    data = [torch.tensor([[0.5, 1.0, 2.0]])]
    prepared = prepare(Exact(), data)
    evaluator = prepared.evaluator()
    ops = len(prepared.ops)
    evaluator.evaluate(Precision.all_fp32(ops), 0)
    assert evaluator.evaluate(Precision.of(range(1, ops), ops), 0).executions == 1


def test_the_next_profile_is_skipped_once_the_limit_is_broken():
    prepared = prepare(Planted(0).eval(), samples(0), numerics="ieee,strict")
    fp16 = Precision.all_fp16(len(prepared.ops))
    finite = Precision.of(prepared.evaluator().engine.overflows(fp16), len(prepared.ops))
    whole = prepared.evaluator().evaluate(finite, 0)
    early = prepared.evaluator().evaluate(finite, 0, stop_above=1e-6)
    assert whole.exact and whole.loss >= early.loss > 1e-6 and not early.exact
    assert early.executions < whole.executions


def test_a_metric_of_ones_own_is_given_fp32():
    """Whatever its ops are typed: it would compute in FP16 itself otherwise."""
    from mpsearch.evaluation.metrics import resolve

    def measure(reference, outputs):
        assert outputs["y"].dtype == reference["y"].dtype == "float32"
        assert outputs["n"].dtype == "int32"
        return 0.0

    values = {"y": torch.ones(2), "n": torch.ones(2, dtype=torch.int32)}
    narrow = values | {"y": values["y"].half()}
    assert resolve(measure, False).whole([values], [narrow], []) == 0.0


#: By metric, the loss of what is the same, and of 1.1 times (1, 2, 3, 4).
BY_HAND = {
    "rel_l2": (0.0, 0.1),
    "max_abs": (0.0, 0.4),
    "mean_abs": (0.0, 0.25),
    "cosine": (0.0, 0.0),
    "kl": (0.0, 0.00285),
    "top1": (0.0, 0.0),
    "snr": (-math.inf, -20.0),
    "psnr": (-math.inf, -10 * math.log10(16 / 0.075)),
}


@pytest.mark.parametrize("metric", options.METRICS)
def test_metrics_by_hand(metric):
    """The reference is (1, 2, 3, 4), the output 1.1 times that."""
    from mpsearch.evaluation.metrics import resolve

    same, changed = BY_HAND[metric]
    reference = {"y": torch.tensor([[1.0, 2.0, 3.0, 4.0]])}
    measure = resolve(metric, False)
    assert measure.whole([reference], [reference], []) == same
    output = {"y": reference["y"] * 1.1}
    assert measure.whole([reference], [output], []) == pytest.approx(changed, abs=2e-4)
    broken = {"y": torch.tensor([[1.0, float("nan"), 3.0, 4.0]])}
    worst = 1.0 if metric == "top1" else math.inf
    assert measure.whole([reference], [broken], []) == worst


@pytest.mark.parametrize("metric", options.METRICS)
def test_outputs_that_are_infinite_throughout_are_the_same(metric):
    from mpsearch.evaluation.metrics import resolve

    measure, infinite = resolve(metric, False), {"y": torch.full((1, 4), math.inf)}
    same = 0.0 if metric not in options.IN_DB else -math.inf
    assert measure.whole([infinite], [infinite], []) == pytest.approx(same, abs=1e-12)


@pytest.mark.parametrize("metric", options.METRICS)
def test_what_a_metric_shows_is_worse_for_larger_differences(metric):
    from mpsearch.evaluation.metrics import resolve

    draw = torch.Generator().manual_seed(0)
    reference, noise = (torch.randn(1, 64, generator=draw) for _ in range(2))
    measure = resolve(metric, False)
    assert measure.name == metric
    losses = [
        measure.whole([{"y": reference}], [{"y": reference + size * noise}], [])
        for size in (1e-3, 10.0)
    ]
    near, far = map(measure.loss_of, losses)
    assert losses[0] < losses[1] and (near > far) == (metric in options.IN_DB)


def test_top1_is_the_share_over_all_samples():
    from mpsearch.evaluation.metrics import resolve

    a, b = {"y": torch.tensor([[1.0, 0.0]])}, {"y": torch.tensor([[0.0, 1.0]])}
    assert resolve("top1", False).whole([a, a, a, a], [a, b, a, a], []) == 0.25


def test_rounding_model_ranks_as_single_evaluations_do():
    """Spearman correlation of predicted and true errors of ops cast alone."""
    from scipy.stats import spearmanr

    from examples import llama

    prepared = prepare(llama.build(small=True), llama.samples(3, small=True))
    evaluator = prepared.evaluator()
    model = rounding_model_of(evaluator, 0)
    count = len(prepared.ops)
    predicted = [math.sqrt(model.harm((i,), ())) for i in range(count)]
    alone = [Precision.of(set(range(count)) - {i}, count) for i in range(count)]
    true = [evaluator.loss(precision) for precision in alone]
    assert spearmanr(predicted, true).statistic > 0.9


def test_casts_are_counted_as_the_package_has_them(tmp_path):
    """Against the package as coremltools writes it, for random vectors."""
    prepared = prepare(Planted(4).eval(), samples(4))
    casts = Casts(prepared.lowered)
    random = np.random.default_rng(0)
    for share in (0.0, 0.3, 0.6, 1.0):
        count = len(prepared.ops)
        precision = Precision.of(np.flatnonzero(random.random(count) < share), count)
        names = [prepared.ops[i].name for i in precision]
        path = tmp_path / f"{share}.mlpackage"
        emission.convert(prepared.precast, emission.selector(names)).save(str(path))
        assert casts.count(precision) == verification.read_back(path).casts


def test_tables_that_are_started_over_lose_nothing(monkeypatch):
    """On long programs the tables outgrow their share between one look-up and the next."""
    plain = mpsearch.optimize(Planted(0), samples(0), budget(0))
    monkeypatch.setattr("mpsearch.evaluation.identities._LEAST_KEY_BYTES", 0)
    monkeypatch.setattr("mpsearch.evaluation.identities._KEY_BYTES", 1 << 20)
    small = mpsearch.optimize(
        Planted(0), samples(0), budget(0), execution=mpsearch.Execution(cache_bytes=1 << 12)
    )
    assert small.fp32_ops == plain.fp32_ops
    assert small.error == plain.error
