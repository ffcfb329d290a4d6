"""Powers of two instead of FP32: exact, chosen with the fewest ops, written, and read back."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest
import torch

import mpsearch
from benchmarks import zoo
from benchmarks.rescale import equal_case
from benchmarks.zoo import masked as masked_zoo
from mpsearch._ct import quiet
from mpsearch.executor.predict import Executor
from mpsearch.program.lowering import copy_program, lower
from mpsearch.program.precision import Precision
from mpsearch.report import text
from mpsearch.scaling.exponents import Magnitudes, plan
from mpsearch.scaling.mil import rescale
from mpsearch.scaling.patterns import rewrites
from mpsearch.scaling.scaled import rewritten, with_changes
from mpsearch.source.prepare import prepare
from tests import scalable
from tests.packages import alone, contents

with quiet():
    from coremltools.converters.mil.mil import Builder as mb

NORM = "rmsnorm_outlier"  # an outlier channel, whose square FP16 cannot hold
DIVISION = "complex_division"  # a quotient that needs multiplications


def case(name, count=12):
    found = zoo.cases([name])[name]
    model, samples = zoo.drawn(found, 0, count)
    return model, samples, found.BUDGET


def search(name, mode, **options):
    model, samples, budget = case(name)
    conversion = mpsearch.Conversion(rescale=mode)
    return mpsearch.optimize(model, samples, budget, conversion=conversion, **options)


@pytest.fixture(scope="module")
def folded():
    return search(NORM, "fold")


@pytest.fixture(scope="module")
def inserted():
    return search(DIVISION, "insert")


def as_dicts(scales):
    return [
        {"op": s.op, "type": s.type, "shape": s.shape, "inputs": dict(s.inputs)} for s in scales
    ]


def planned(made, seed, most, insert=True):
    function = lower(made)
    slots = scalable.floats(made, function)
    sizes = scalable.magnitudes(seed, slots, list(function.inputs.values()), most)
    operations = made.functions["main"].operations
    shapes = {op.name: tuple(op.outputs[0].shape) for op in operations}
    shapes |= {var.name: tuple(var.shape) for var in made.functions["main"].outputs}
    constants = [op.outputs[0].name for op in operations if op.op_type == "const"]
    return function, sizes, plan(function, sizes, {}, shapes, constants, insert, 20.0)


# -- exact ----------------------------------------------------------------------------------------


def scaled_equals_plain(seed, ops, insert=True):
    """Whether a random program was scaled; that it gives the same is asserted."""
    made = scalable.program(seed, ops)
    _, _, found = planned(made, seed, 4, insert)
    if not found.scales:
        return False
    other = copy_program(made)
    rescale(other, as_dicts(found.scales))
    x = np.random.default_rng(seed).normal(0, 1, scalable.SHAPE).astype(np.float32)
    plain, scaled = Executor(made).predict({"x": x}), Executor(other).predict({"x": x})
    assert plain.keys() == scaled.keys()
    for name, value in plain.items():
        assert np.array_equal(value, scaled[name], equal_nan=True), (seed, name)
    count = {len(p.functions["main"].find_ops(op_type="mul")) for p in (made, other)}
    assert max(count) - min(count) == found.inserted
    return True


@pytest.mark.thorough
def test_random_programs_give_the_same_to_the_bit():
    assert sum(scaled_equals_plain(seed, 8) for seed in range(120)) > 90


def test_an_op_may_have_the_name_of_the_output_that_it_computes():
    assert scaled_equals_plain(10052, 8)


def test_what_a_branch_captures_is_not_scaled():
    @mb.program(input_specs=[mb.TensorSpec(shape=(4,))])
    def made(x):
        large = [mb.mul(x=x, y=np.float32(factor)) for factor in (2.0, 3.0)]
        chosen = mb.cond(
            pred=mb.greater(x=mb.reduce_sum(x=x, axes=[0]), y=np.float32(0)),
            _true_fn=lambda: mb.add(x=large[0], y=large[1]),
            _false_fn=lambda: mb.sub(x=large[0], y=large[1]),
        )
        return mb.mul(x=chosen, y=np.float32(2**-9), name="y")

    function = lower(made)
    slots = scalable.floats(made, function)
    sizes = dict.fromkeys(slots, Magnitudes(2.0**18, 2.0**16, 2.0**16, 2.0**16))
    sizes |= dict.fromkeys(function.inputs.values(), Magnitudes(1.0, 2.0**16, 0.25, 0.01))
    constants = [op.outputs[0].name for op in made.functions["main"].find_ops(op_type="const")]
    operations = made.functions["main"].operations
    shapes = {op.name: tuple(op.outputs[0].shape) for op in operations}
    found = plan(function, sizes, {}, shapes, constants, True, 20.0)
    other = copy_program(made)
    rescale(other, as_dicts(found.scales))
    x = np.arange(1, 5, dtype=np.float32)
    plain, scaled = Executor(made).predict({"x": x}), Executor(other).predict({"x": x})
    assert np.array_equal(plain["y"], scaled["y"])


def test_folding_inserts_nothing():
    for seed in range(40):
        made = scalable.program(seed, 6)
        _, _, found = planned(made, seed, 4, insert=False)
        assert found.inserted == 0 and all(
            set(scale.inputs) == set(scale.folded) for scale in found.scales
        )


def test_an_exponent_that_is_wrong_shows():
    """The comparison above can fail."""
    made = scalable.program(1, 8)
    _, _, found = planned(made, 1, 4)
    other, scales = copy_program(made), as_dicts(found.scales)
    port = next(iter(scales[0]["inputs"]))
    scales[0]["inputs"][port] += 1
    rescale(other, scales)
    x = np.ones(scalable.SHAPE, np.float32)
    plain, scaled = Executor(made).predict({"x": x}), Executor(other).predict({"x": x})
    assert any(not np.array_equal(plain[k], scaled[k]) for k in plain)


SCALED = [
    "complex_division",
    "convnext_layernorm",
    "htdemucs",
    "lama_dft",
    "mask_6e4",
    "qk_logits",
    "sdxl_vae",
    "sensevoice",
    "t5_residual",
    "window_attention",
]


@pytest.mark.thorough
@pytest.mark.parametrize("name", SCALED)
def test_cases_of_the_zoo_give_the_same_to_the_bit(name):
    (found,) = zoo.cases([name]).values()
    assert equal_case(found) == "scaled and equal to the bit"


# -- the fewest -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(24))
def test_as_few_multiplications_as_brute_force_over_exponents(seed):
    made = scalable.program(seed, 6, few=True)
    function, sizes, found = planned(made, seed, 2)
    span = 4
    cost = found.inserted + 16 * found.left
    best = scalable.cheapest(function, sizes, span, beyond=16, most=cost)
    within = all(abs(tensor.exponent) <= span for tensor in found.tensors)
    assert cost == best if within else cost <= best


# -- with the search ------------------------------------------------------------------------------


@pytest.mark.thorough
def test_what_only_its_range_kept_in_fp32_is_fp16(folded):
    assert folded.met and not folded.kept
    assert folded.rescaling.inserted == 0 and folded.rescaling.folded > 0
    assert folded.error_fp16 <= folded.budget


def test_where_nothing_can_take_it_up_multiplications_are_inserted(inserted):
    assert inserted.met and not inserted.kept and inserted.rescaling.inserted > 0
    model, samples, budget = case(DIVISION)
    fold = mpsearch.optimize(model, samples, budget, conversion=mpsearch.Conversion(rescale="fold"))
    assert fold.met and (fold.rescaling is None or fold.rescaling.inserted == 0)


@pytest.mark.thorough
def test_fresh_inputs_keep_the_margins(folded, tmp_path):
    model, _, _ = case(NORM)
    _, fresh = zoo.drawn(zoo.cases([NORM])[NORM], 7, 40)
    folded.save(tmp_path / "out")
    checked = mpsearch.check(tmp_path / "out", model, fresh)
    assert checked.holds and checked.broken == 0 and checked.same_model


@pytest.mark.thorough
def test_without_rescaling_the_result_says_what_it_would_give():
    found = search(NORM, "off")
    assert found.kept and found.rescaling is None
    said = 'Conversion(rescale="fold"): no op needs FP32 then, in place of 18'
    assert said in found.rescale_hint


@pytest.mark.thorough
def test_a_model_that_fits_is_left_alone():
    found = search("resnet18", "insert")
    assert found.met and found.rescaling is None and found.rescale_hint == ""


class Two(torch.nn.Module):
    """A norm that only its range breaks, and a variance that its digits break as well."""

    def __init__(self):
        super().__init__()
        self.norm, self.variance = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)

    def forward(self, x):
        y = 2000 * self.norm(x)
        n = y * torch.rsqrt((y * y).mean(-1, keepdim=True) + 1e-6)
        u = 10 * self.variance(x) + 300
        v = (u * u).mean(-1, keepdim=True) - u.mean(-1, keepdim=True).square()
        return torch.cat([n, 0.03 * v], -1)


@pytest.mark.thorough
def test_what_stays_in_fp32_for_its_digits_is_not_scaled():
    torch.manual_seed(0)
    model, draw = Two().eval(), torch.Generator().manual_seed(0)
    data = [torch.randn(1, 16, generator=draw) for _ in range(16)]
    conversion = mpsearch.Conversion(rescale="insert")
    found = mpsearch.optimize(model, data, 1e-2, conversion=conversion)
    assert found.met and {op.type for op in found.kept} >= {"reduce_mean", "sub"}
    assert found.rescaling.inserted == 0
    assert {scale.type for scale in found.rescaling.scales} == {"mul", "add", "rsqrt"}
    plain = mpsearch.optimize(model, data, 1e-2)
    assert set(found.fp32_ops) < set(plain.fp32_ops)


def test_digits_are_not_cured_by_powers_of_two():
    plain, scaled = search("rope_positions", "off"), search("rope_positions", "insert")
    assert plain.fp32_ops == scaled.fp32_ops and scaled.rescaling is None


# -- what is written ------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("which", ["folded", "inserted"])
def test_the_written_files_alone_give_the_same_package(which, request, tmp_path):
    result = request.getfixturevalue(which)
    out = tmp_path / "out"
    result.save(out)
    model, samples, _ = case(NORM if which == "folded" else DIVISION, 1)
    package = alone(out, model, samples[0], tmp_path)
    assert contents(package) == contents(out / "model.mlpackage")


@pytest.mark.thorough
def test_a_stored_config_scales_again(folded, tmp_path):
    folded.save(tmp_path / "out")
    model, samples, _ = case(NORM)
    package = mpsearch.apply(tmp_path / "out", model, samples[:1])
    package.save(str(tmp_path / "again.mlpackage"))
    assert contents(tmp_path / "again.mlpackage") == contents(tmp_path / "out" / "model.mlpackage")


@pytest.mark.thorough
def test_weights_that_have_outgrown_their_exponents_are_told(folded, tmp_path):
    folded.save(tmp_path / "out")
    model, samples, _ = case(NORM)
    assert mpsearch.check(tmp_path / "out", model, samples).outgrown == ()
    grown = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in grown.parameters():
            if parameter.dim() > 1:
                parameter *= 16
    checked = mpsearch.check(tmp_path / "out", grown, samples)
    assert checked.outgrown and not checked.same_model
    assert "outgrown: " in text.check(checked, lambda line, mood: line)


@pytest.mark.thorough
def test_a_config_whose_ops_are_others_is_refused(folded, tmp_path):
    folded.save(tmp_path / "out")
    file = tmp_path / "out" / "precision.json"
    config = json.loads(file.read_text())
    config["scales"][0]["op"] = "nowhere"
    file.write_text(json.dumps(config))
    model, samples, _ = case(NORM)
    for call in (mpsearch.apply, mpsearch.check):
        with pytest.raises(mpsearch.InputError, match=r"'nowhere'.*run optimize"):
            call(tmp_path / "out", model, samples[:2])


# -- rewritten ------------------------------------------------------------------------------------


class Spelled(torch.nn.Module):
    """One of the spellings that FP16 breaks, of inputs of any size."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def masked(x):
    kept = x[:, :, :1] < x.abs().amax()
    kept = torch.cat([kept, torch.ones_like(kept[:, :, :0])], -1)
    mask = (1.0 - kept.float()) * torch.finfo(torch.float32).min
    return torch.softmax(x + mask.transpose(1, 2), -1)


SPELLINGS = {
    "softplus": (torch.nn.functional.softplus, 40.0),
    "mish": (torch.nn.functional.mish, 40.0),
    "logsumexp": (lambda x: torch.logsumexp(x, -1), 40.0),
    "logsumexp of two axes": (lambda x: torch.logsumexp(x, (1, 2), keepdim=True), 40.0),
    "log of softmax": (lambda x: torch.log(torch.softmax(x, 1)), 8.0),
    "log_softmax": (lambda x: torch.log_softmax(x, -1), 8.0),
    "softmax by hand": (lambda x: torch.exp(x) / torch.exp(x).sum(1, keepdim=True), 3.0),
    "softmax of two axes": (lambda x: x.exp() / x.exp().sum((1, 2), keepdim=True), 3.0),
    "mask": (masked, 1.0),
    "exp": (lambda x: torch.exp(x) - 1.0, 2.0),
    "log": (lambda x: torch.log(torch.relu(x) + 0.5), 2.0),
}
#: The power of two that is taken out of an exponential or a logarithm.
TAKEN = 9


@pytest.mark.parametrize("name", SPELLINGS)
def test_other_spellings_are_equal_in_fp32(name):
    """On values that FP16 holds at every step of neither spelling."""
    function, size = SPELLINGS[name]
    draw = torch.Generator().manual_seed(0)
    data = [size * torch.randn(1, 6, 6, generator=draw) for _ in range(50)]
    prepared = prepare(Spelled(function), data)
    exponents = {op.name: TAKEN for op in prepared.ops}
    found = rewrites(prepared.precast.program, (), exponents)
    assert found, [op.type for op in prepared.ops]
    other = with_changes(prepared, found, ())
    every = Precision.all_fp32(len(other.ops))
    for sample, reference in enumerate(other.references):
        (given,) = other.evaluator().engine.outputs(every, sample).values()
        (wanted,) = reference.values()
        assert torch.allclose(given, wanted, rtol=2e-6, atol=2e-6), (given - wanted).abs().max()


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["logsumexp", "softplus", "log_softmax"])
def test_what_is_rewritten_needs_no_fp32(name):
    model, samples, budget = case(name)
    numerics = zoo.numerics(zoo.cases([name])[name])
    rewriting = mpsearch.Conversion(rewrite=True)
    found = mpsearch.optimize(model, samples, budget, numerics=numerics, conversion=rewriting)
    assert found.met and not found.kept and len(found.rewrites) == 1
    assert mpsearch.optimize(model, samples, budget, numerics=numerics).kept


@pytest.mark.parametrize("axes", [-1, (1, 2)])
def test_a_softmax_by_hand_becomes_one(axes):
    data = [15 * torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    model = Spelled(lambda x: torch.exp(x) / torch.exp(x).sum(axes, keepdim=True))
    found = mpsearch.optimize(model, data, 1e-2, conversion=mpsearch.Conversion(rewrite=True))
    assert found.met and not found.kept and [r.kind for r in found.rewrites] == ["softmax"]
    assert mpsearch.optimize(model, data, 1e-2).kept


@pytest.mark.thorough
@pytest.mark.parametrize("value", [-1e9, torch.finfo(torch.float32).min])
def test_rows_masked_from_end_to_end_stay_even(value):
    """Their scores vanish beside the mask in FP32, and must not show in FP16 either."""
    model, samples = masked_zoo.build(value), zoo.masked.samples(16)
    rewriting = mpsearch.Conversion(rewrite=True)
    found = mpsearch.optimize(model, samples, 1e-2, conversion=rewriting)
    assert found.met and not found.kept and [r.kind for r in found.rewrites] == ["finite_mask"]
    assert mpsearch.optimize(model, samples, 1e-2).kept


def test_a_mask_that_leaves_some_order_of_scores_stays():
    """Beside -5e6 FP32 holds the scores of a row masked from end to end to one half."""
    model, samples = masked_zoo.build(-5e6), zoo.masked.samples(16)
    rewriting = mpsearch.Conversion(rewrite=True)
    found = mpsearch.optimize(model, samples, 1e-2, conversion=rewriting)
    assert found.met and found.rewrites == () and found.kept


@pytest.mark.thorough
@pytest.mark.parametrize(("value", "additions"), [(-1e4, 1), (-5e4, 2), (-1e5, 1)])
def test_rows_masked_from_end_to_end_keep_their_scores(value, additions):
    """FP32 still holds them beside the mask; FP16 does where the mask is less its largest value."""
    model, samples = masked_zoo.build(value, additions), zoo.masked.samples(16)
    rewriting = mpsearch.Conversion(rewrite=True)
    found = mpsearch.optimize(model, samples, 1e-2, conversion=rewriting)
    assert found.met and not found.kept
    assert [r.kind for r in found.rewrites].count("row_mask") == additions


@pytest.mark.thorough
def test_a_mask_without_its_largest_values_is_written(tmp_path):
    model, samples = masked_zoo.build(-5e4, 2), zoo.masked.samples(16)
    assert mpsearch.optimize(model, samples, 1e-2).kept
    rewriting = mpsearch.Conversion(rewrite=True)
    mpsearch.optimize(model, samples, 1e-2, conversion=rewriting).save(tmp_path / "out")
    package = alone(tmp_path / "out", model, samples[0], tmp_path)
    assert contents(package) == contents(tmp_path / "out" / "model.mlpackage")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "more", [{"exponent": 3}, {"input": "y"}, {"channels": [[0, 8]]}, {"kind": "row_mask"}]
)
def test_a_spelling_takes_what_its_kind_takes(more, folded, tmp_path):
    folded.save(tmp_path / "out")
    file = tmp_path / "out" / "precision.json"
    config = json.loads(file.read_text())
    config["rewrites"] = [{"op": "a", "type": "softplus", "kind": "softplus", **more}]
    file.write_text(json.dumps(config))
    model, samples, _ = case(NORM)
    with pytest.raises(mpsearch.InputError, match=r"precision.json.* takes .*rewrites"):
        mpsearch.check(tmp_path / "out", model, samples[:2])


# -- what softmax does not see --------------------------------------------------------------------


class Attention(torch.nn.Module):
    """Heads of 8 channels; ``scores`` and ``keys`` are changed on their way, ``end`` ends it."""

    def __init__(self, made="fused", scores=None, keys=None, softmax=-1, end=None):
        super().__init__()
        self.made, self.softmax = made, softmax
        self.scores, self.keys, self.end = scores, keys, end
        layer = torch.nn.Conv1d if made == "conv" else torch.nn.Linear
        more = (1,) if made == "conv" else ()
        self.parts = torch.nn.ModuleList(
            [layer(32, 96, *more)] if made == "fused" else [layer(32, 32, *more) for _ in range(3)]
        )

    def forward(self, x):  # (1, T, 32)
        if self.made == "conv":
            q, k, v = (part(x.transpose(1, 2)).transpose(1, 2) for part in self.parts)
        elif self.made == "fused":
            q, k, v = self.parts[0](x).chunk(3, -1)
        else:
            q, k, v = (part(x) for part in self.parts)
        k = k if self.keys is None else self.keys(k)
        q, k, v = (t.reshape(1, -1, 4, 8).transpose(1, 2) for t in (q, k, v))
        scores = q @ k.transpose(-1, -2) / 8**0.5
        scores = scores if self.scores is None else self.scores(scores)
        y = torch.softmax(scores, self.softmax) @ v
        return y if self.end is None else self.end(y, q, k, scores)


def attention(size=1.0, **options):
    torch.manual_seed(0)
    model = Attention(**options).eval()
    with torch.no_grad():
        for part in model.parts:
            part.bias.copy_(size * torch.randn_like(part.bias))
    draw = torch.Generator().manual_seed(1)
    return model, [torch.randn(1, 12, 32, generator=draw) for _ in range(16)]


def key_biases(model, data):
    prepared = prepare(model, data)
    slots = {slot for node in prepared.lowered.nodes for slot in node.outputs}
    sizes = dict.fromkeys(slots, Magnitudes(1.0, 2.0**16, 0.1, 0.0))
    return prepared, [r for r in rewritten(prepared, lambda: sizes) if r.kind == "key_bias"]


SEEN_BY_NOTHING = {
    "fused": {},
    "apart": {"made": "apart"},
    "convolutions": {"made": "conv"},
    "added to": {"scores": lambda s: s + torch.arange(12.0)},
    "less than something": {"scores": lambda s: s.sub(torch.ones(12, 12).triu())},
    "scaled by head": {"scores": lambda s: s * torch.tensor([1.0, 2.0, 0.5, 3.0])[:, None, None]},
    "masked": {"scores": lambda s: s.masked_fill(torch.ones(12, 12).triu(1) > 0, -torch.inf)},
    "along queries": {"softmax": -2},
    "reshaped": {"scores": lambda s: s.reshape(2, 2, 12, 12).reshape(1, 4, 12, 12)},
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", SEEN_BY_NOTHING)
def test_a_bias_of_keys_is_left_out(name):
    prepared, found = key_biases(*attention(**SEEN_BY_NOTHING[name]))
    (only,) = found
    keys_first = "made" in SEEN_BY_NOTHING[name] or name == "along queries"
    assert only.channels == (((0, 32),) if keys_first else ((32, 64),))
    other = with_changes(prepared, found, ())
    every = Precision.all_fp32(len(other.ops))
    for sample, reference in enumerate(other.references):
        (given,) = other.evaluator().engine.outputs(every, sample).values()
        (wanted,) = reference.values()
        assert torch.allclose(given, wanted, rtol=2e-5, atol=2e-6), (given - wanted).abs().max()


SEEN = {
    "by the output": {"end": lambda y, q, k, scores: y.sum() + k},
    "by the values": {"end": lambda y, q, k, scores: y @ k.transpose(-1, -2)},
    "by another use of scores": {"end": lambda y, q, k, scores: y.sum() + scores},
    "by tanh": {"scores": lambda s: 5 * torch.tanh(s / 5)},
    "alike for no two keys": {"keys": lambda k: k * torch.arange(1.0, 13.0)[None, :, None]},
    "gathered by what is computed": {
        "keys": lambda k: torch.gather(k, 1, (k * 0).long()),
    },
    "rotated": {"keys": lambda k: k * torch.cos(torch.arange(12.0))[:, None] + k.flip(-1)},
    "a finite mask instead of scores": {
        "scores": lambda s: torch.where(torch.ones(12, 12).triu(1) > 0, torch.tensor(-9.0), s)
    },
    "a factor for each key": {"scores": lambda s: s * torch.arange(1.0, 13.0)},
}


@pytest.mark.parametrize("name", SEEN)
def test_a_bias_that_shows_stays(name):
    _, found = key_biases(*attention(**SEEN[name]))
    assert not found


def test_a_bias_that_is_small_stays():
    model, data = attention(0.01)
    prepared = prepare(model, data)
    slots = {slot for node in prepared.lowered.nodes for slot in node.outputs}
    sizes = dict.fromkeys(slots, Magnitudes(1.0, 2.0**16, 0.1, 0.0))
    assert rewritten(prepared, lambda: sizes) == []


@pytest.mark.thorough
def test_keys_with_a_large_bias_need_no_fp32(tmp_path):
    model, data = attention(made="apart")
    with torch.no_grad():
        for part in model.parts[:2]:
            part.bias += 100.0
    found = mpsearch.optimize(model, data, 1e-2, conversion=mpsearch.Conversion(rewrite=True))
    assert found.met and not found.kept and [r.kind for r in found.rewrites] == ["key_bias"]
    assert mpsearch.optimize(model, data, 1e-2).kept
    found.save(tmp_path / "out")
    package = alone(tmp_path / "out", model, data[0], tmp_path)
    assert contents(package) == contents(tmp_path / "out" / "model.mlpackage")
    report = (tmp_path / "out" / "report.html").read_text()
    assert "parts.1</code></td><td>bias[0:32] set to 0" in report
    other, _ = attention(made="apart", scores=torch.tanh)
    with pytest.raises(mpsearch.InputError, match="as key_bias, which the model does not have"):
        mpsearch.check(tmp_path / "out", other, data)


@pytest.mark.thorough
def test_powers_of_two_go_through_exponentials_and_logarithms(tmp_path):
    model, samples, budget = case("cumulative_logsumexp")
    rewriting = mpsearch.Conversion(rewrite=True, rescale="fold")
    found = mpsearch.optimize(model, samples, budget, conversion=rewriting)
    assert found.met and not found.kept and {r.kind for r in found.rewrites} == {"exp", "log"}
    found.save(tmp_path / "out")
    package = alone(tmp_path / "out", model, samples[0], tmp_path)
    assert contents(package) == contents(tmp_path / "out" / "model.mlpackage")


@pytest.mark.thorough
def test_a_spelling_is_written_and_stored(tmp_path):
    model, samples, budget = case("log_softmax")
    rewriting = mpsearch.Conversion(rewrite=True)
    found = mpsearch.optimize(model, samples, budget, conversion=rewriting)
    assert found.rewrites
    found.save(tmp_path / "out")
    package = alone(tmp_path / "out", model, samples[0], tmp_path)
    assert contents(package) == contents(tmp_path / "out" / "model.mlpackage")
    checked = mpsearch.check(tmp_path / "out", model, samples)
    assert checked.holds and checked.error < budget


class Both(torch.nn.Module):
    """A mask of -1e9, which a rewrite mends, and a norm of large values, which powers of two do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)

    def forward(self, x, keep):
        scores = self.a(x) @ x.transpose(1, 2) + (1 - keep) * -1e9
        y = torch.softmax(scores, -1) @ self.b(x) * 3000
        return y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-3)


class Digits(torch.nn.Module):
    """A norm of large values, which powers of two mend, and a difference that needs digits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)

    def forward(self, x):
        y = self.b(x) * 3000
        return y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-3) + self.a(x).cumsum(1) + 900


def test_what_a_change_gives_is_told_in_what_is_minimized():
    draw = torch.Generator().manual_seed(1)
    data = [torch.randn(1, 8, 16, generator=draw) for _ in range(12)]
    least = mpsearch.Constraints(minimize="flops")
    found = mpsearch.optimize(Digits().eval(), data, 1e-4, constraints=least)
    said = re.search(r"arithmetic in FP32: ([\d.]+)% in place of ([\d.]+)%", found.rescale_hint)
    fold = mpsearch.Conversion(rescale="fold")
    changed = mpsearch.optimize(Digits().eval(), data, 1e-4, constraints=least, conversion=fold)
    then, before = float(said[1]) / 100, float(said[2]) / 100
    assert before == pytest.approx(found.costs["package"].fp32_flops, rel=5e-3)
    assert changed.costs["package"].fp32_flops <= then * 1.005 < before


def test_what_a_change_gives_is_told_and_true():
    draw = torch.Generator().manual_seed(1)
    data = [
        {
            "x": torch.randn(1, 8, 16, generator=draw),
            "keep": (torch.rand(1, 1, 8, generator=draw) > 0.3).float(),
        }
        for _ in range(12)
    ]
    found = mpsearch.optimize(Both().eval(), data, 1e-2)
    assert found.rescale_hint.startswith('Conversion(rescale="fold"): no op needs FP32 then')
    for rewrite in (False, True):
        changed = mpsearch.Conversion(rewrite=rewrite, rescale="fold")
        assert mpsearch.optimize(Both().eval(), data, 1e-2, conversion=changed).fp32_ops == []
