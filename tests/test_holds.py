"""Sets that hold on inputs that nobody has seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

import mpsearch
from benchmarks import families, zoo
from mpsearch.evaluation import coverage
from mpsearch.evaluation.reach import Magnitude
from mpsearch.executor.ops import OPS
from mpsearch.program.absorption import NONE, RULES, Infinite, Inputs
from mpsearch.program.precision import Precision
from mpsearch.source.prepare import prepare
from tests.command import run
from tests.models import batches, net
from tests.planted import Planted, budget


def normal(count, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, *shape, generator=generator) for _ in range(count)]


class Function(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


# --- overflows: absorbed for every input, or refused ------------------------------------------

#: Each overflows in FP16 by the product with 40,000; the result is then of the size of x again.
ABSORBING = {
    "tanh": lambda x: torch.tanh(x * 4e4) + x,
    "sigmoid": lambda x: torch.sigmoid(x * 4e4) + x,
    "erf": lambda x: torch.erf(x * 4e4) + x,
    "clamp": lambda x: torch.clamp(x * 4e4, -2, 2) + x,
    "relu6": lambda x: F.relu6(x * 4e4) + x,
    "relu of minus infinity": lambda x: F.relu(x.abs() * -4e4) + x,
    "exp of minus infinity": lambda x: torch.exp(x.abs() * -4e4) + x,
    "minimum": lambda x: torch.minimum(x.abs() * 4e4, x),
    "maximum after a reshape": lambda x: torch.maximum((x.abs() * -4e4).reshape(1, 4, 8), x),
    "greater": lambda x: torch.where(x * 4e4 > 1.0, x, -x),
    "through a sum": lambda x: torch.tanh(x * 4e4 + x),
    "through a root": lambda x: torch.tanh(torch.sqrt(x.abs() * 4e4)) + x,
    "scaled and clipped": lambda x: torch.clamp(x * 4e4 * 0.5, 0, 1) + x,
}
#: Ops of one input whose rule may say that an infinity is absorbed.
UNARY = {
    **{op: {} for op in ("tanh", "erf", "sigmoid", "atan", "relu6", "sign", "relu", "exp")},
    **{op: {} for op in ("softplus", "exp2", "sqrt", "log", "gelu", "silu")},
    "elu": {"alpha": 1.0},
}
#: Those that absorb none, what they give is infinite too, and those whose rules read constants.
_OTHERS = {"abs", "square", "clip", "sigmoid_hard", "linear_activation", "leaky_relu", "softmax"}


def test_every_op_of_one_input_that_has_a_rule_is_among_them():
    families = ("activation", "elementwise_unary")
    assert {op for op in RULES if OPS[op].family in families} == UNARY.keys() | _OTHERS


@pytest.mark.parametrize("op", UNARY)
def test_what_a_rule_says_is_absorbed_gives_the_same(op):
    """From where a rule absorbs an infinity, FP16 cannot tell it from what FP32 computes."""
    function, least = OPS[op].function, torch.tensor([0.5, 2.0, 8.0, 20.0, 30.0, 5e3, 65504.0])
    for sign in (1.0, -1.0):
        for start in least.tolist():
            infinite = Infinite(positive=sign > 0, negative=sign < 0, least=start)
            given = Inputs(None, {"x": infinite}, lambda name: 0.0)
            if RULES[op](given) == NONE:
                true = function(sign * start * torch.logspace(0, 3, 50), **UNARY[op])
                wanted = function(torch.tensor(sign * float("inf")), **UNARY[op])
                assert torch.allclose(true.half(), wanted.half(), rtol=2**-11, atol=2**-24)


REFUSED = {
    "over infinity": lambda x: 1.0 / (x.abs() * 4e4 + 1.0) + x,
    "scaled back": lambda x: (x * 4e4) / 4e4,
    "infinity less infinity": lambda x: torch.tanh(x * 4e4 - x * 3e4) + x,
    "scaled down first": lambda x: torch.tanh((x * 4e4) * 1e-6) + x,
    "brought back by a sum": lambda x: torch.clamp(x * 4e4 - x * 6e4, -2e4, 2e4) * 1e-4 + x,
    "clipped further out": lambda x: torch.clamp(x * 4e4 * 0.25, -3e4, 3e4) * 1e-4 + x,
    "compared with more": lambda x: torch.where((x * 4e4) * 1e-3 > 100.0, x, -x),
    "root": lambda x: torch.sqrt(x.abs() * 4e4) * 1e-2 + x,
    "relu of infinity": lambda x: F.relu(x * 4e4) * 2.5e-5 + x,
    "softmax of infinity": lambda x: torch.softmax(x * 4e4, -1) + x,
    "times zero": lambda x: torch.tanh((x * 4e4) * F.relu(x)) + x,
    "beyond the range all the same": lambda x: torch.clamp(x * 4e4, -1e5, 1e5) * 1e-5 + x,
    "unmasked softmax": lambda x: torch.softmax(-(x.abs() * 4e4), -1) + x,
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", ABSORBING)
def test_what_the_graph_absorbs_stays_in_fp16(name):
    model, data = Function(ABSORBING[name]), normal(6, 4, 8)
    result = mpsearch.optimize(model, data, 2e-3, heldout=0.0)
    assert result.fp32_ops == [] and result.error_fp16 <= 2e-3
    assert result.absorbed_overflows
    # For every input, not for these: PyTorch is asked about others.
    executor = mpsearch.Executor(result.mlmodel)
    for x in normal(50, 4, 8, seed=1):
        (got,) = executor.predict({next(iter(executor.input_ranks())): x.numpy()}).values()
        wanted = model(x).numpy()
        assert np.linalg.norm(got - wanted) <= 2e-3 * np.linalg.norm(wanted)


@pytest.mark.thorough
@pytest.mark.parametrize("name", REFUSED)
def test_other_overflows_are_refused_whatever_the_error(name):
    """The product with 40,000 overflows, and is FP32 though the budget allows any error."""
    model, data = Function(REFUSED[name]), normal(6, 4, 8)
    result = mpsearch.optimize(model, data, 1e9, heldout=0.0)
    assert result.met
    overflowing = {row.name for row in result.headroom if row.rule == "overflows"}
    assert overflowing and overflowing <= set(result.fp32_ops)
    executor = mpsearch.Executor(result.mlmodel)
    for x in normal(50, 4, 8, seed=1):
        (got,) = executor.predict({next(iter(executor.input_ranks())): x.numpy()}).values()
        wanted = model(x).numpy()
        assert np.linalg.norm(got - wanted) <= 1e-2 * np.linalg.norm(wanted)


def masked_softmax(x, keep):
    return torch.softmax(x + (1.0 - keep.float()[:, None]) * -1e5, -1)


def test_masked_softmax_absorbs_minus_infinity():
    keep = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 1]])
    data = [(x, keep) for x in normal(6, 4, 8)]
    result = mpsearch.optimize(Function(masked_softmax), data, 2e-3)
    assert result.fp32_ops == [] and result.absorbed_overflows
    assert {row.rule for row in result.headroom} == {"absorbed"}


# --- ranges have a margin ----------------------------------------------------------------------


def test_the_margin_covers_maxima_that_were_not_seen():
    """Against maxima of 1,000 normal values, of which 4 to 64 are seen: the next 500 of each."""
    random = np.random.default_rng(0)
    for seen, models in ((4, 200), (16, 200), (64, 200)):
        beyond = 0
        for _ in range(models):
            size = 10 ** random.uniform(0, 4)
            maxima = size * np.abs(random.standard_normal((seen + 500, 200))).max(1)
            magnitude = Magnitude()
            for value in maxima[:seen]:
                magnitude.add(value)
            bound = magnitude.next(1e-3)
            beyond += int((maxima[seen:] > bound).sum())
            assert bound <= 4 * maxima[:seen].max()
        assert beyond <= 3 * 1e-3 * models * 500


def test_what_does_not_depend_on_the_input_needs_no_margin():
    magnitude = Magnitude()
    for _ in range(4):
        magnitude.add(60000.0)
    assert magnitude.next(1e-3) == 60000.0


def test_a_range_just_under_the_limit_is_kept_in_fp32():
    """The largest square in these samples fits; one input in some hundred reaches 65,520."""

    def near(x):
        return ((x * 60.0) ** 2).mean(-1) / 3600.0

    data = normal(8, 4, 64)
    largest = max(float(((x * 60.0) ** 2).max()) for x in data)
    assert 30000 < largest < 65000
    assert any(float(((x * 60.0) ** 2).max()) > 65520 for x in normal(300, 4, 64, seed=1))
    result = mpsearch.optimize(Function(near), data, 1e-2)
    near_it = [row for row in result.headroom if row.rule == "may overflow"]
    assert {row.name for row in near_it} <= set(result.fp32_ops)
    alone = mpsearch.Constraints(objective="calibration", tolerate_overflow=True)
    seen = mpsearch.optimize(Function(near), data, 1e-2, heldout=0.0, constraints=alone)
    assert seen.status == "fp16_suffices"  # as far as the samples say
    assert near_it[0].samples == pytest.approx(65520 / largest, rel=0.3) and near_it[0].next < 1


def test_what_may_vanish_where_its_logarithm_is_taken_is_kept_in_fp32():
    """The least probability of these samples is 7e-8; 3e-8 is 0 in FP16, and its logarithm -inf."""

    def log_of_softmax(x):
        return torch.log(torch.softmax(x, -1))

    def draw(count, seed):
        generator = torch.Generator().manual_seed(seed)
        return [2.5 * torch.randn(1, 4, 32, generator=generator) for _ in range(count)]

    def least(data):
        return min(float(torch.softmax(x, -1).min()) for x in data)

    data = draw(16, 0)
    assert 6e-8 < least(data) < 1.2e-7 and least(draw(3000, 1)) < 2.0**-25
    result = mpsearch.optimize(Function(log_of_softmax), data, 2e-2)
    assert [op.verdict for op in result.kept] == ["may vanish"] * 2
    assert {op.type for op in result.kept} == {"softmax", "log"}
    assert {row.rule for row in result.headroom} == {"may vanish"}
    assert result.headroom[0].samples == pytest.approx(least(data) * 2**25, rel=1e-3)
    alone = mpsearch.Constraints(objective="calibration", tolerate_overflow=True)
    seen = mpsearch.optimize(Function(log_of_softmax), data, 2e-2, heldout=0.0, constraints=alone)
    assert seen.status == "fp16_suffices"  # as far as the samples say


@pytest.mark.parametrize(
    "harmless",
    [
        lambda x: torch.softmax(x, -1) + 1.0,  # nothing is divided by it
        lambda x: torch.log(torch.softmax(x, -1) + 1e-3),  # an epsilon that FP16 holds
    ],
)
def test_small_values_that_nothing_is_divided_by_may_vanish(harmless):
    generator = torch.Generator().manual_seed(0)
    data = [14.2 * torch.rand(1, 4, 32, generator=generator) for _ in range(16)]
    assert mpsearch.optimize(Function(harmless), data, 2e-2).status == "fp16_suffices"


# --- coverage ----------------------------------------------------------------------------------


def test_coverage_is_clopper_and_pearsons():
    for failures, samples, confidence in ((0, 59, 0.95), (3, 100, 0.9), (10, 20, 0.99)):
        exact = stats.binomtest(samples - failures, samples).proportion_ci(
            2 * confidence - 1, method="exact"
        )
        found = coverage.lower_bound(failures, samples, confidence)
        assert found == pytest.approx(exact.low, abs=1e-9)
    assert coverage.lower_bound(5, 5, 0.95) == 0.0
    assert coverage.needed(0.95, 0.95) == 59 and coverage.needed(0.99, 0.95) == 299
    assert coverage.allowed(59, 0.95, 0.95) == 0 and coverage.allowed(93, 0.95, 0.95) == 1
    assert coverage.promised(4, 0.95, 0.95) == pytest.approx(0.05 ** (1 / 4))


@pytest.mark.thorough
def test_the_promise_is_true_on_planted_models():
    """Each promise may fail with a chance of 5%; of 16, 4 or more do with one of 0.7%."""
    untrue = 0
    for seed in range(16):
        result = mpsearch.optimize(Planted(seed), normal(40, 6, seed=seed), budget(seed))
        assert result.met
        if result.coverage is None:
            continue
        unseen = normal(600, 6, seed=1000 + seed)
        prepared = prepare(Planted(seed), unseen)
        kept = [op.index for op in prepared.ops if op.name in result.fp32_ops]
        precision = Precision.of(kept, len(prepared.ops))
        found = prepared.evaluator(cache_bytes=0).evaluate_together(precision, range(len(unseen)))
        untrue += np.mean([e.loss <= budget(seed) for e in found]) < result.coverage
    assert untrue <= 3


def test_few_samples_promise_little_and_say_what_would_do():
    result = mpsearch.optimize(net(), batches(), 1e-2)
    assert result.heldout_samples == 1 and result.coverage == pytest.approx(0.05)
    assert "at least 5% of inputs like these" in result.explanation
    assert "197 samples, 59 of them held out, would allow 95%" in result.explanation
    none = mpsearch.optimize(net(), batches(), 1e-2, heldout=0.0)
    assert none.coverage is None and "nothing is promised" in none.explanation


def test_check_counts_the_samples_that_break_the_budget():
    result = mpsearch.optimize(net(), batches(), 1e-2)
    held = mpsearch.check(result.config, net(), batches())
    assert held.holds and (held.broken, held.samples) == (0, 4)
    assert held.coverage == pytest.approx(0.05 ** (1 / 4)) and held.confidence == 0.95
    larger = [100 * x for x in batches()]
    broken = mpsearch.check(result.config, net(), [*batches(), *larger])
    assert not broken.holds and broken.broken == 4


# --- counterexamples ---------------------------------------------------------------------------


def spread(x):
    """Squares that leave FP16's range on large inputs only, and a mean that brings them back."""
    return torch.sqrt(((x * 10.0) ** 2).mean(-1, keepdim=True)) + x


def test_a_heldout_overflow_becomes_a_sample_and_not_a_tighter_budget():
    data = [0.5 * x for x in normal(7, 4, 8)] + [200 * x for x in normal(1, 4, 8, seed=1)]
    result = mpsearch.optimize(Function(spread), data, 1e-3)
    (note,) = [note for note in result.notes if "held out" in note]
    assert note.startswith("Sample 7, held out, overflowed at ")
    assert len(result.fp32_ops) <= 4 and result.coverage is None
    seen_from_the_start = mpsearch.optimize(Function(spread), data, 1e-3, heldout=0.0)
    assert set(result.fp32_ops) >= set(seen_from_the_start.fp32_ops)


class Energy(torch.nn.Module):
    """Eleven ops, two of which overflow on loud inputs: a square, and the mean of squares."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.heard = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.mixed = torch.nn.Conv2d(8, 8, 1)
        self.said = torch.nn.Conv2d(8, 4, 1)

    def forward(self, x):
        h = self.heard(x)
        energy = ((300 * h) ** 2).mean((1, 2, 3), keepdim=True)
        y = torch.relu(self.mixed(torch.relu(300 * h * torch.rsqrt(energy + 1e-5))))
        return self.said(y)


def test_an_overflow_in_a_heldout_sample_costs_the_two_ops_that_overflow():
    quiet = [0.12 * x for x in normal(8, 3, 8, 8)]
    data = [*quiet[:7], 4 * quiet[7]]
    largest = [300 * float(Energy().heard(x).abs().max()) for x in data]
    assert max(largest[:7]) < 130 and 260 < largest[7] < 400  # the square of 256 is infinite
    result = mpsearch.optimize(Energy(), data, 1e-2)
    assert result.candidate_ops == 11 and len(result.fp32_ops) == 2
    assert [op.type for op in result.kept] == ["pow", "reduce_mean"]
    assert result.notes == (
        f"Sample 7, held out, overflowed at {result.fp32_ops[0]}; it is now among those searched.",
    )
    assert all("held-out 7" in op.reason for op in result.kept)  # not another of the same place
    assert len(result.errors) == 8 and max(result.errors) == result.error  # of every sample given


@pytest.mark.thorough
def test_no_op_is_kept_that_the_samples_do_not_need():
    model, limit, data = families.drawn("encoder:101", seed=1, count=24)
    wanted = mpsearch.Constraints(objective="calibration")
    result = mpsearch.optimize(model, data, limit, heldout=0.0, constraints=wanted)
    prepared = prepare(model, data)
    evaluator = prepared.evaluator()
    kept = {op.index for op in prepared.ops if op.name in result.fp32_ops}
    assert result.met and kept
    for op in kept:
        assert evaluator.loss(Precision.of(kept - {op}, len(prepared.ops))) > limit


def test_all_samples_refuse_an_overflow_that_the_output_does_not_show():
    """A difference is 0 in FP16, what is divided by it infinite, the output as good as right."""

    def wiped_out(x):
        near = x.abs() + 500.0
        return x + 1.0 / (1.0 + (1.0 / (near + 0.05 - near)) ** 2)

    data = normal(24, 4, 8)
    tolerant = mpsearch.Constraints(tolerate_overflow=True)
    assert not mpsearch.optimize(Function(wiped_out), data, 1e-2, constraints=tolerant).fp32_ops
    result = mpsearch.optimize(Function(wiped_out), data, 1e-2)
    prepared = prepare(Function(wiped_out), data)
    kept = {op.index for op in prepared.ops if op.name in result.fp32_ops}
    engine = prepared.evaluator().engine
    assert kept and not engine.overflows(Precision.of(kept, len(prepared.ops)))


def test_a_sample_that_was_not_searched_on_is_found_to_break_the_set():
    data = [0.5 * x for x in normal(29, 4, 8)]
    data.insert(20, 20 * normal(1, 4, 8, seed=1)[0])
    tolerant = mpsearch.Constraints(tolerate_overflow=True)  # so that ranges say nothing
    result = mpsearch.optimize(Function(spread), data, 1e-3, heldout=0.0, constraints=tolerant)
    prepared = prepare(Function(spread), data)
    kept = [op.index for op in prepared.ops if op.name in result.fp32_ops]
    loss = prepared.evaluator().loss(Precision.of(kept, len(prepared.ops)))
    assert loss <= 1e-3 and result.error <= 1e-3


def test_calibration_alone_is_there_for_those_who_have_all_their_inputs():
    """Products of small integers are exact in FP16; those of other inputs are not."""
    draw = torch.Generator().manual_seed(0)
    data = [torch.randint(-3, 4, (1, 4, 4), generator=draw).float() for _ in range(6)]
    model = Function(lambda x: torch.matmul(x, x) + torch.matmul(x, x.abs()) * 3.0)
    alone = mpsearch.Constraints(objective="calibration")
    calibrated = mpsearch.optimize(model, data, 1e-5, heldout=0.0, constraints=alone)
    unseen = mpsearch.optimize(model, data, 1e-5, heldout=0.0)
    assert calibrated.status == "fp16_suffices" and len(unseen.fp32_ops) > 0


# --- samples are items -------------------------------------------------------------------------


@pytest.mark.thorough
def test_batches_and_their_rows_are_the_same_samples():
    rows = torch.cat(batches())
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows), batch_size=3)
    found = [
        mpsearch.optimize(net(), given, 1e-2)
        for given in (batches(), rows, loader, torch.utils.data.TensorDataset(rows), [rows])
    ]
    assert len({tuple(r.fp32_ops) for r in found}) == 1
    assert len({r.error for r in found}) == 1
    assert all("4 samples of" in r.understood for r in found)
    assert any("taken apart" in note for note in found[1].notes)
    (size,) = {tuple(r.config.inputs[0].shape) for r in found}
    assert size == (1, 4, 8)


def test_one_bad_item_of_a_batch_is_not_averaged_away():
    batch = torch.cat([0.5 * x for x in normal(31, 4, 8)] + [20 * normal(1, 4, 8, seed=1)[0]])
    tolerant = mpsearch.Constraints(tolerate_overflow=True)
    result = mpsearch.optimize(Function(spread), batch, 1e-3, heldout=0.0, constraints=tolerant)
    assert result.fp32_ops
    executor = mpsearch.Executor(result.mlmodel)
    got = executor.predict({next(iter(executor.input_ranks())): batch[31:].numpy()})
    wanted = spread(batch[31:]).numpy()
    assert np.linalg.norm(next(iter(got.values())) - wanted) <= 1e-3 * np.linalg.norm(wanted)


def test_rows_that_see_each_other_stay_together():
    def attention(x):
        return torch.softmax(x @ x.transpose(-1, -2), -1) @ x

    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    result = mpsearch.optimize(Function(attention), [x, x + 1.0], 1e-2)
    assert result.config.inputs[0].shape == (6, 8)


def test_batches_stay_whole_where_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--budget", "1e-2", "--batches", "whole", "-o", "out", "--json"]
    torch.save({"x": torch.cat(batches())}, "x.pt")
    run("optimize", "tests.models:net", "--inputs", "x.pt", *arguments)
    rows = torch.cat(batches())
    whole = mpsearch.Conversion(batches="whole")
    result = mpsearch.optimize(net(), [rows, 2 * rows], 1e-2, conversion=whole)
    assert result.config.inputs[0].shape == (4, 4, 8)


# --- many samples are cheap --------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", ["t5_residual", "mask_1e9", "rt_detr", "rmsnorm_outlier", "residual_vit"]
)
def test_samples_run_together_give_what_they_give_alone(name):
    """To the bit: where a model decides by near ties, the order of a sum decides the error."""
    case = zoo.cases([name])[name]
    model, data = zoo.drawn(case, 0, 32)
    prepared = prepare(model, data, "rel_l2", zoo.numerics(case))
    evaluator = prepared.evaluator(cache_bytes=0)
    engine, count = evaluator.engine, len(prepared.ops)
    precision = Precision.of(range(0, count, 2), count)
    together = list(engine.several(precision, range(32)))
    executions = engine.executions
    for sample, (outputs, _) in enumerate(together):
        alone = engine.outputs(precision, sample)
        for key, value in alone.items():
            torch.testing.assert_close(outputs[key], value, rtol=0, atol=0, equal_nan=True)
    assert executions < (engine.executions - executions) / 3


def test_samples_of_other_shapes_and_random_ops_run_one_by_one():
    data = [torch.randn(1, n, 8, generator=torch.Generator().manual_seed(n)) for n in (2, 4, 4, 3)]
    prepared = prepare(net(), data)
    evaluator = prepared.evaluator()
    precision = Precision.all_fp32(len(prepared.ops))
    found = list(evaluator.evaluate_together(precision, range(4)))
    assert len(found) == 4 and max(evaluation.loss for evaluation in found) < 1e-5


def test_redrawn_pixels_are_not_rounded_on_the_way_in():
    """Values that FP16 holds stay such; of the others, next to none is."""

    def exact(value):
        return float((value == value.half().float()).float().mean())

    draw = torch.Generator().manual_seed(0)
    pixels = [torch.randint(0, 256, (1, 3, 16, 16), generator=draw).float() for _ in range(3)]
    mixed = [torch.cat([p, torch.rand(p.shape, generator=draw)], 1) for p in pixels]
    for data, share in ((pixels, 1.0), (mixed, 0.5), (normal(3, 3, 64), 0.0)):
        prepared = prepare(Function(lambda x: x * 2.0), data, redraw=lambda flops: 9)
        assert len(prepared.redrawn.samples) == 6
        for place, sample in enumerate(prepared.redrawn.samples):
            (value,) = sample.values()
            (before,) = prepared.calibration.samples[place % 3].values()
            assert exact(value) == pytest.approx(share, abs=0.02)
            assert not torch.equal(value, before)


def test_redrawn_samples_need_values_that_can_be_moved():
    moved = prepare(net(), batches(), redraw=lambda flops: 10)
    assert len(moved.redrawn.samples) == 6
    again = prepare(net(), batches(), redraw=lambda flops: 10)
    for one, other in zip(moved.redrawn.samples, again.redrawn.samples, strict=True):
        assert all(torch.equal(one[k], other[k]) for k in one)
    first = moved.redrawn.samples[0]["x"] / moved.calibration.samples[0]["x"] - 1
    assert 0 < float(first.abs().max()) < 0.1
    masks = [torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 1]])]
    assert prepare(torch.nn.Embedding(8, 4), masks, redraw=lambda flops: 10).redrawn.samples == []


class Pairs(torch.nn.Module):
    """Ids below 500 that must come in pairs of one kind, even or odd, whatever is in between."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(500, 8)

    def forward(self, ids):
        if not torch.jit.is_tracing() and int((ids[:, 0] + ids[:, -1]) % 2):
            raise ValueError("the ends do not fit together")
        return self.table(ids)


def test_redrawn_integers_come_from_the_same_places_of_other_samples():
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 500, (1, 40), generator=draw) for _ in range(4)]
    ids = [torch.cat([x, x[:, :1]], 1) for x in ids]
    prepared = prepare(Pairs(), ids, redraw=lambda flops: 36)
    assert len(prepared.redrawn.samples) == 32
    changed = 0
    for place, sample in enumerate(prepared.redrawn.samples):
        (value,) = sample.values()
        moved = value[0] != ids[place % 4][0]
        assert int(moved.sum()) <= 15  # some 1% or 10%, one at least
        assert all(int(value[0, i]) in {int(x[0, i]) for x in ids} for i in moved.nonzero())
        changed += bool(moved.any())
    assert changed > 16  # where the model takes no such ids, the sample stays as it is


# --- what a user was told wrongly ----------------------------------------------------------------


class Root(torch.nn.Module):
    """A root of squares, which vanish in FP16 on small inputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = (torch.nn.Linear(64, 64, bias=False) for _ in range(2))

    def forward(self, x):
        y = self.a(x)
        return self.b(torch.sqrt(y * y))


@pytest.mark.parametrize("size", [1e-3, 3e-3])
def test_what_is_met_is_met_on_every_sample_that_was_given(size):
    """A held-out sample that broke the budget was told of, and then broken again."""
    data = normal(64, 64)
    data[58] = size * data[58]
    result = mpsearch.optimize(Root(), data, 1e-2)
    prepared = prepare(Root(), data)
    kept = [op.index for op in prepared.ops if op.name in result.fp32_ops]
    assert result.met
    assert prepared.evaluator().loss(Precision.of(kept, len(prepared.ops))) <= 1e-2


class Convolutions(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(4)]
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


def test_easy_samples_cost_no_ops():
    textured = [torch.rand(x.shape) * x for x in normal(20, 3, 16, 16)]
    blank = [torch.zeros(1, 3, 16, 16)] * 4
    prepared = prepare(Convolutions(), textured)
    limit = 1.5 * prepared.evaluator().loss(Precision.all_fp16(len(prepared.ops)))
    for data in (textured, textured + blank):
        assert mpsearch.optimize(Convolutions(), data, limit).fp32_ops == []


def test_errors_on_one_screen_are_of_the_same_samples():
    model = Function(lambda x: torch.tanh(x) * 3.0 + x)
    data = normal(40, 4, 8)
    result = mpsearch.optimize(model, data, 1e-2, heldout=0.25)
    prepared = prepare(model, data, heldout=0.25)
    fp16 = prepared.evaluator().loss(Precision.all_fp16(len(prepared.ops)))
    assert result.fp32_ops == [] and result.error_fp16 == fp16
    assert result.error == pytest.approx(result.error_fp16, rel=1e-6)


class Guided(torch.nn.Module):
    """A guided filter: the variance is what cancels on smooth pictures."""

    def forward(self, x):
        def box(y):
            return F.avg_pool2d(y, 5, 1, 2)

        mean = box(x)
        variance = box(x * x) - mean * mean
        a = variance / (variance + 1e-5)
        return box(a) * x + box(mean - a * mean)


def test_alone_is_of_the_sample_that_an_op_breaks():
    """It was of the first sample, and "adds up, 0.0003" was said of what breaks others alone."""
    ramp = torch.linspace(0.5, 1.0, 24)
    easy = [x.abs() for x in normal(4, 1, 24, 24)]
    smooth = [(ramp * (1 + i / 20) / 2 + 0.25).expand(1, 1, 24, 24).clone() for i in range(20)]
    result = mpsearch.optimize(Guided(), easy + smooth, 1e-3, heldout=0.0)
    prepared = prepare(Guided(), easy + smooth)
    evaluator, count = prepared.evaluator(), len(prepared.ops)
    assert result.met and result.kept
    for op in result.kept:
        (index,) = (o.index for o in prepared.ops if o.name == op.name)
        loss = evaluator.loss(Precision.of(set(range(count)) - {index}, count))
        if loss > 1e-3 and op.verdict != "rounding":
            assert op.sensitivity is None or op.sensitivity > 1e-3
            assert "breaks" in op.reason
        assert op.verdict != "rounding" or loss <= 2e-3
    assert all(op.verdict and op.reason for op in result.kept)


class Gated(torch.nn.Module):
    """A GRU behind what cancels: what comes before a loop has no gradient."""

    def __init__(self, recurrent):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(8, 16)
        self.recurrent = recurrent(16, 16, batch_first=True)

    def forward(self, x):
        y = torch.tanh(self.first(x))
        y = (y + 300.0) - 300.0
        return self.recurrent(torch.sigmoid(y) * 2.0)[0]


@pytest.mark.thorough
def test_ops_before_a_loop_are_ranked_by_what_they_do():
    data = normal(8, 6, 8)
    counts = [
        len(mpsearch.optimize(Gated(kind), data, 3e-3).fp32_ops)
        for kind in (torch.nn.LSTM, torch.nn.GRU)
    ]
    assert counts[1] <= counts[0] + 3


def test_counts_in_the_front_include_what_is_required():
    data = [100 * x for x in normal(12, 4, 8)]
    result = mpsearch.optimize(Function(spread), data, 1e-3)
    assert result.fp32_ops and min(count for count, _ in result.front) >= 1
    assert min(count for count, error in result.front if error is not None) >= len(
        [op for op in result.kept if op.verdict.startswith(("over", "may"))]
    )


def test_held_out_samples_are_spread_over_the_data():
    """Four blank pictures at the end of a list all were held out."""
    data = [*normal(20, 4, 8), *([torch.zeros(1, 4, 8)] * 4)]
    prepared = prepare(net(), data, heldout=0.3)
    blank = [bool((value == 0).all()) for s in prepared.heldout.samples for value in s.values()]
    assert len(blank) == 7 and sum(blank) <= 2
    assert prepared.heldout.places[-1] == 23
