"""Remedies: found where they fit, equal in FP32, and within the budget in FP16."""

from __future__ import annotations

import math

import pytest
import torch

import mpsearch
from benchmarks import zoo
from examples import complex_division, efficientvit, llama, stylegan2
from mpsearch import rewrites
from mpsearch.explain.remedies import REMEDIES
from mpsearch.program.precision import Precision
from mpsearch.source.prepare import prepare

SHAPE = (2, 4, 32)


def _normal(
    scale: float, shape: tuple[int, ...] = SHAPE, offset: float = 0.0, step: float = 0.0
) -> list[torch.Tensor]:
    """Samples, in whole steps where a step is given, so that FP16 can hold them."""
    generator = torch.Generator().manual_seed(0)
    drawn = [scale * torch.randn(shape, generator=generator) + offset for _ in range(3)]
    return [torch.round(x / step) * step for x in drawn] if step else drawn


class Call(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def _qk(x):
    return torch.softmax((x @ x.transpose(-1, -2)) * 0.05, -1)


def _qk_rewritten(x):
    return torch.softmax(rewrites.attention_scores(x, x, 0.05), -1)


def _attention(x):
    q, k = torch.relu(x), torch.relu(x) + 1
    v = torch.nn.functional.pad(x, (0, 0, 0, 1), value=1.0)
    out = (v @ k.transpose(-1, -2)) @ q
    return out[:, :-1] / (out[:, -1:] + 1e-6)


def _attention_rewritten(x):
    return rewrites.linear_attention(torch.relu(x), torch.relu(x) + 1, x, 1e-6)


def _complex(x):
    a, b, c, d = x.unbind(1)
    size = c * c + d * d
    return torch.stack([(a * c + b * d) / size, (b * c - a * d) / size], 1)


def _masked(value):
    mask = (torch.arange(32) >= 20).float() * value
    return lambda x: torch.softmax(x + rewrites.finite_mask(mask), -1)


def _masked_plainly(x):
    hide = (torch.arange(32) >= 20).float() + 0 * x  # from an input, as masks are
    return torch.softmax(x + hide * torch.finfo(torch.float32).min, -1)


GROUPS = torch.tensor([0, 0, 1, 2, 2, 2, 1, 3])


def _groups(x):
    power = torch.exp(x)
    return power / torch.zeros(4, 5).index_add(0, GROUPS, power)[GROUPS]


def _groups_scattered(x):
    """As torch_scatter and PyTorch Geometric do it."""
    power, index = torch.exp(x), GROUPS[None].expand(5, 8)
    total = torch.zeros(5, 4).scatter_add(1, index, power)
    return power / (total.gather(1, index) + 1e-16)


def _groups_mixed(x):
    """Over the sums of other groups."""
    power = torch.exp(x)
    return power / torch.zeros(4, 5).index_add(0, GROUPS, power)[(GROUPS + 1) % 4]


def _cross_distances(a, b):
    squares = (a * a).sum(-1)[:, :, None] + (b * b).sum(-1)[:, None]
    return squares - 2 * a @ b.transpose(1, 2)


def _distances(x):
    return _cross_distances(x[:, :16], x[:, 16:])


def _distances_rewritten(x):
    a, b = x[:, :16], x[:, 16:]
    return _cross_distances(rewrites.centered(a, -2), rewrites.centered(b, -2, by=a))


def _self_distances(x):
    """Of points (1, 3, N), as DGCNN writes them."""
    inner = -2 * torch.matmul(x.transpose(2, 1), x)
    squares = torch.sum(x**2, dim=1, keepdim=True)
    return squares + inner + squares.transpose(2, 1)


def _variance(x):
    return (x * x).mean(-1) - x.mean(-1) ** 2


def _covariance(x):
    a, b = x.chunk(2, 1)
    return (a * b).mean(-1) - a.mean(-1) * b.mean(-1)


def _covariance_rewritten(x):
    return _covariance(rewrites.centered(x, -1))


RATES = 16 * torch.randn(32, generator=torch.Generator().manual_seed(1))


def _fourier(x):
    phase = 2 * math.pi * (x[..., None] * RATES)
    return torch.cat([phase.sin(), phase.cos()], -1)


def _fourier_rewritten(x):
    phase = rewrites.wrapped_phase(x[..., None], 2 * math.pi * RATES, 1 / 64, 2.0)
    return torch.cat([phase.sin(), phase.cos()], -1)


def _magnitude(x):
    re, im = x.unbind(1)
    return torch.sqrt(re**2 + im**2 + 1e-9)


CASES = {
    "scaled_norm": (
        lambda x: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6),
        lambda x: rewrites.scaled_norm(x, -1, 1e-6),
        _normal(600),
        "ieee",
    ),
    "scaled_norm of a sum": (
        lambda x: x * torch.rsqrt((x * x).sum((1, 2), keepdim=True) + 1e-8),
        lambda x: rewrites.scaled_norm(x, (1, 2), 1e-8, mean=False),
        _normal(100),
        "ieee",
    ),
    "softplus": (torch.nn.functional.softplus, rewrites.softplus, _normal(15), "ane"),
    "softplus by hand": (
        lambda x: torch.log(1 + torch.exp(x)),
        rewrites.softplus,
        _normal(15),
        "ieee",
    ),
    "logsumexp": (
        lambda x: torch.logsumexp(x, -1),
        lambda x: rewrites.logsumexp(x, -1),
        _normal(15),
        "ane",
    ),
    "log_softmax": (
        lambda x: torch.log(torch.softmax(x, -1)),
        lambda x: rewrites.log_softmax(x, -1),
        _normal(15),
        "ieee",
    ),
    "softmax": (
        lambda x: torch.exp(x) / torch.exp(x).sum(-1, keepdim=True),
        lambda x: rewrites.softmax(x, -1),
        _normal(8),
        "ieee",
    ),
    "softmax over two axes": (
        lambda x: torch.exp(x) / (torch.exp(x).sum((1, 2), keepdim=True) + 1e-6),
        lambda x: rewrites.softmax(x, (1, 2), eps=1e-6),
        _normal(8),
        "ieee",
    ),
    "softmax over all axes": (
        lambda x: torch.exp(x) / torch.exp(x).sum(),
        lambda x: rewrites.softmax(x, (-3, -2, -1)),
        _normal(8),
        "ieee",
    ),
    "scatter_softmax": (
        _groups,
        lambda x: rewrites.scatter_softmax(x, GROUPS, 4, 0),
        _normal(8, (8, 5)),
        "ieee",
    ),
    "scatter_softmax of scatter_add": (
        _groups_scattered,
        lambda x: rewrites.scatter_softmax(x, GROUPS, 4, 1, eps=1e-16),
        _normal(8, (5, 8)),
        "ieee",
    ),
    "centered distances": (
        _distances,
        _distances_rewritten,
        _normal(1, (1, 32, 3), offset=20, step=1 / 32),
        "ieee",
    ),
    "centered distances in one cloud": (
        _self_distances,
        lambda x: _self_distances(rewrites.centered(x, -1)),
        _normal(30, (1, 3, 32), offset=400, step=0.5),
        "ieee",
    ),
    "centered variance": (
        _variance,
        lambda x: _variance(rewrites.centered(x, -1)),
        _normal(1, offset=20, step=1 / 32),
        "ieee",
    ),
    "centered covariance": (
        _covariance,
        _covariance_rewritten,
        _normal(1, offset=20, step=1 / 32),
        "ieee",
    ),
    "wrapped_phase": (_fourier, _fourier_rewritten, _normal(0.5, (2, 8), step=1 / 128), "ieee"),
    "wrapped_phase of turns": (
        lambda x: torch.sin(2 * math.pi * x),
        lambda x: torch.sin(rewrites.wrapped_phase(x, torch.tensor(2 * math.pi), 1 / 2, 1 / 32)),
        _normal(8, step=1 / 32),
        "ieee",
    ),
    "magnitude": (
        _magnitude,
        lambda x: rewrites.magnitude(torch.stack(x.unbind(1)), 1e-9, False, 0),
        _normal(500, (1, 2, 32)),
        "ieee",
    ),
    "magnitude of small numbers": (
        _magnitude,
        lambda x: rewrites.magnitude(x, 1e-9, False, 1),
        _normal(1e-3, (1, 2, 32)),
        "ieee",
    ),
    "magnitude of a mean": (
        lambda x: torch.sqrt(torch.mean(x**2, dim=(1, 2), keepdim=True)),
        lambda x: rewrites.magnitude(x, 0.0, True, (1, 2), mean=True),
        _normal(500),
        "ieee",
    ),
    "attention_scores": (_qk, _qk_rewritten, _normal(60), "ieee"),
    "linear_attention": (_attention, _attention_rewritten, _normal(8, (2, 4, 4096)), "ieee"),
    "complex_divide": (
        _complex,
        lambda x: torch.stack(rewrites.complex_divide(*x.unbind(1)), 1),
        _normal(400),
        "ieee",
    ),
    "log_power": (
        lambda x: torch.log(x * x + 1.0),
        lambda x: rewrites.log_power(x, 4096.0, 1.0),
        _normal(3000),
        "ieee",
    ),
    "finite_mask": (
        _masked_plainly,
        _masked(torch.finfo(torch.float32).min),
        _normal(3),
        "ieee",
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("case", CASES)
def test_a_rewrite_is_equal_in_fp32_and_holds_in_fp16(case):
    original, rewritten, data, numerics = CASES[case]
    for x in data:
        torch.testing.assert_close(rewritten(x), original(x), rtol=1e-4, atol=2e-5)
    budget = 4e-3
    errors = []
    for function in (original, rewritten):
        prepared = prepare(Call(function), data, numerics=numerics)
        fp16 = Precision.all_fp16(len(prepared.ops))
        errors.append(prepared.evaluator().loss(fp16))
    assert errors[1] <= budget < errors[0], errors
    found = mpsearch.analyze(Call(original), data, numerics=numerics)
    assert [remedy.kind for remedy in found.remedies] == [case.split()[0]]
    for remedy in found.remedies:
        compile(remedy.code, case, "exec")  # what is shown is Python
    assert mpsearch.analyze(Call(rewritten), data, numerics=numerics).remedies == ()


@pytest.mark.parametrize("case", CASES)
def test_a_rewrite_converts_to_what_it_computes(case):
    """coremltools makes an op with an epsilon of its own of a number over a tensor."""
    _, rewritten, data, _ = CASES[case]
    prepared = prepare(Call(rewritten), [size * x for x in data for size in (1.0, 1e-2, 1e-4)])
    assert prepared.evaluator().loss(Precision.all_fp32(len(prepared.ops))) <= 1e-5


def _both_ways(x):
    power = torch.exp(x)
    return torch.cat([power / power.sum(-1, keepdim=True), power * 1e-9], -1)


def _beside_overflow(function):
    return lambda x: torch.cat([function(x), torch.relu(x * 1e5) * 1e-5], -1)


#: Per remedy: a model that FP16 breaks and that looks alike, and what is offered for it instead.
OTHERS = {
    "softplus": (_beside_overflow(torch.nn.functional.softplus), _normal(3), []),
    "logsumexp": (_beside_overflow(lambda x: x.logsumexp(-1, keepdim=True)), _normal(3), []),
    "log_softmax": (_beside_overflow(lambda x: x.softmax(-1) * x.log_softmax(-1)), _normal(3), []),
    "softmax": (_both_ways, _normal(8), []),
    "scatter_softmax": (_groups_mixed, _normal(0.3, (8, 5), offset=12), []),
    "finite_mask": (lambda x: torch.relu(x * 1e5) * 1e-5, _normal(3), []),
    "attention_scores": (
        lambda x: torch.softmax((x @ x.transpose(-1, -2)) * 0.9, -1),
        _normal(60),
        [],
    ),
    "linear_attention": (
        lambda x: ((x @ x.transpose(-1, -2)) @ x) * 1e-6,
        _normal(60),
        [],
    ),
    "complex_divide": (lambda x: (x[:, 0] ** 2 + x[:, 1] ** 2) * 1e-5, _normal(400), []),
    "scaled_norm": (
        lambda x: torch.sqrt((x * x).sum(1) + 1e-6),
        _normal(500),
        ["magnitude"],
    ),
    "scaled_norm of a product": (
        lambda x: x * torch.sqrt((x * x).mean(1, keepdim=True)) * 1e-4,
        _normal(500),
        ["magnitude"],
    ),
    "magnitude": (
        lambda x: x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6),
        _normal(500),
        ["scaled_norm"],
    ),
    "log_power": (lambda x: torch.tanh(x * x * 1e-6), _normal(1000), []),
    "centered distances": (_distances, _normal(100, (1, 32, 3)), []),
    "centered variance": (_variance, _normal(400), []),
    "wrapped_phase": (  # what is wrapped has lost its digits before
        lambda x: torch.sin(30 * (x @ x.transpose(-1, -2))),
        _normal(1, (1, 16, 16)),
        [],
    ),
    "wrapped_phase of less than a turn": (
        _beside_overflow(lambda x: torch.sin(0.3 * x)),
        _normal(3),
        [],
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_remedy_is_not_offered_where_it_would_not_do(case):
    function, data, instead = OTHERS[case]
    found = mpsearch.analyze(Call(function), data)
    assert found.culprits
    assert [remedy.kind for remedy in found.remedies] == instead


@pytest.mark.parametrize("kind", ["magnitude", "centered variance"])
def test_optimize_offers_it_in_its_summary(kind):
    function, _, data, _ = CASES[kind]
    result = mpsearch.optimize(Call(function), data, 4e-3)
    (remedy,) = result.remedies
    assert remedy.kind == kind.split()[0]
    assert set(remedy.ops) <= {op.name for op in result.kept}
    assert f"({remedy.kind}; see report.html)" in result.summary().replace("\n", " ")


def test_every_remedy_is_tried_where_it_does_and_where_it_does_not():
    kinds = {entry.rewrite.__name__ for entry in REMEDIES}
    assert kinds == {case.split()[0] for case in CASES} == {case.split()[0] for case in OTHERS}


EXPECTED = {
    "scaled_norm": [(stylegan2, False, 24), (llama, True, None)],
    "linear_attention": [(efficientvit, False, 10)],
    "complex_divide": [(complex_division, False, 5)],
}
ZOO = {
    "convnext_layernorm": "scaled_norm",
    "htdemucs": "scaled_norm",
    "log_softmax": "log_softmax",
    "logsumexp": "logsumexp",
    "mask_finfo_min": "finite_mask",
    "mask_6e4": "finite_mask",
    "mish": "softplus",
    "sensevoice": "log_power",
    "softplus": "softplus",
    "window_attention": "attention_scores",
}


@pytest.mark.thorough
@pytest.mark.parametrize("kind", EXPECTED)
def test_the_examples_are_told_their_remedy(kind):
    for example, small, count in EXPECTED[kind]:
        found = mpsearch.analyze(example.build(small=small), example.samples(small=small))
        (remedy,) = found.remedies
        assert remedy.kind == kind
        assert set(remedy.ops) <= {op.name for op in found.culprits}
        assert count is None or len(remedy.ops) == count
        assert all("examples/" in line for line in remedy.lines)
        compile(remedy.code, kind, "exec")  # what is shown is Python


@pytest.mark.thorough
@pytest.mark.parametrize("name", ZOO)
def test_zoo_cases_are_told_their_remedy(name):
    (case,) = zoo.cases([name]).values()
    found = mpsearch.analyze(case.build(), case.samples(), numerics=zoo.numerics(case))
    assert [remedy.kind for remedy in found.remedies] == [ZOO[name]]


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["qk_logits", "rt_detr", "vocoder", "mask_1e4", "resnet18"])
def test_none_is_offered_where_none_would_do(name):
    """Logits that overflow scaled as well, drift, index flips, and a mask that FP16 holds."""
    (case,) = zoo.cases([name]).values()
    assert mpsearch.analyze(case.build(), case.samples(4)).remedies == ()
