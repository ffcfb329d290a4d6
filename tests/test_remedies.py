"""Remedies: found where they fit, equal in FP32, and within the budget in FP16."""

from __future__ import annotations

import pytest
import torch

import mpsearch
from benchmarks import zoo
from examples import complex_division, efficientvit, llama, stylegan2
from mpsearch import rewrites
from mpsearch.program.precision import Precision
from mpsearch.source.prepare import prepare

SHAPE = (2, 4, 32)


def _normal(scale: float, shape: tuple[int, ...] = SHAPE) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(shape, generator=generator) for _ in range(3)]


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
        errors.append(prepared.evaluator().evaluate(fp16).loss)
    assert errors[1] <= budget < errors[0], errors


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


@pytest.mark.parametrize("name", ZOO)
def test_zoo_cases_are_told_their_remedy(name):
    (case,) = zoo.cases([name]).values()
    found = mpsearch.analyze(case.build(), case.samples(), numerics=zoo.numerics(case))
    assert [remedy.kind for remedy in found.remedies] == [ZOO[name]]


@pytest.mark.parametrize("name", ["qk_logits", "rt_detr", "vocoder", "mask_1e4", "resnet18"])
def test_none_is_offered_where_none_would_do(name):
    """Logits that overflow scaled as well, drift, index flips, and a mask that FP16 holds."""
    (case,) = zoo.cases([name]).values()
    assert mpsearch.analyze(case.build(), case.samples(4)).remedies == ()
