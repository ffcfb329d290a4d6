"""PyTorch ops that coremltools does not convert: beside PyTorch, and in a package of its own."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn

import mpsearch
from mpsearch._ct import ct, quiet
from mpsearch.program.precision import Precision
from mpsearch.source.prepare import prepare
from mpsearch.source.torch_ops import CONVERSIONS, IMPORTS, registered, sources
from tests.packages import alone, contents

F = nn.functional


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, y):
        return self.function(x, y)


def _masked(x, y):
    """As transformers makes masks."""
    return x + y.new_ones((4, 6), dtype=torch.bool).tril().logical_not() * y.new_ones(())


def _packed(x, y):
    """As transformers finds packed sequences: where positions do not go on by 1."""
    steps = torch.diff(x.long(), prepend=x[..., :1].long() - 1, dim=-1)
    return (steps != 1).cumsum(-1).float() + y


def _resized(**options):
    def function(x, y):
        image = x[:, None] * y[:, None]
        return F.interpolate(image, mode="bicubic", **options)

    return function


#: By op: functions of two tensors (1, 4, 6), normally distributed times 3.
USES = {
    "new_ones": [_masked],
    "diff": [
        lambda x, y: torch.diff(x) + torch.diff(y),
        lambda x, y: torch.diff(x, n=2, dim=1, append=y),
        lambda x, y: torch.diff(x > y, dim=1).float(),
        _packed,
    ],
    "upsample_bicubic2d": [
        _resized(size=(7, 5)),
        _resized(scale_factor=1.5),
        _resized(scale_factor=(0.5, 2.0), align_corners=True),
    ],
    "_upsample_bicubic2d_aa": [_resized(size=(2, 3), antialias=True)],
    "trunc": [lambda x, y: torch.trunc(x) + y],
    "fmod": [lambda x, y: torch.fmod(x, y.abs() + 0.5), lambda x, y: torch.fmod(x, 2.0) + y],
    "lerp": [lambda x, y: torch.lerp(x, y, 0.3), lambda x, y: torch.lerp(x, y, x)],
    "addcmul": [lambda x, y: torch.addcmul(x, x, y), lambda x, y: torch.addcmul(x, x, y, value=2)],
    "addcdiv": [lambda x, y: torch.addcdiv(x, y, x.abs() + 1, value=0.5)],
    "hypot": [torch.hypot],
    "logaddexp": [torch.logaddexp],
    "isinf": [lambda x, y: torch.isinf(x / torch.relu(y)).float()],
    "isfinite": [lambda x, y: torch.isfinite(x / torch.relu(y)).float()],
    "celu": [lambda x, y: F.celu(x) + F.celu(y, alpha=0.5)],
    "hardshrink": [lambda x, y: F.hardshrink(x) + F.hardshrink(y, 1.5)],
    "softshrink": [lambda x, y: F.softshrink(x) + F.softshrink(y, 1.5)],
    "log_sigmoid": [lambda x, y: F.logsigmoid(x) + F.logsigmoid(20 * y)],
    "logit": [lambda x, y: torch.logit(torch.sigmoid(x)) + torch.logit(y, eps=1e-2)],
    "xlogy": [lambda x, y: torch.xlogy(torch.relu(x), y.abs() + 0.1)],
    "prod": [lambda x, y: x.prod(-1) + y.prod(1, keepdim=True).sum(-1), lambda x, y: x.prod() + y],
    "movedim": [lambda x, y: x.movedim(1, 2) + y.movedim((0, 1), (0, 2))],
    "aminmax": [lambda x, y: sum(torch.aminmax(x, dim=1)) + y[:, 0]],
    "bucketize": [
        lambda x, y: torch.bucketize(x, torch.tensor([-3.0, 0.0, 2.0])).float() + y,
        lambda x, y: torch.bucketize(x.round(), torch.tensor([-3.0, 0.0]), right=True) + y,
    ],
    "isin": [
        lambda x, y: torch.isin(x.round(), torch.tensor([0.0, 1.0])).float() + y,
        lambda x, y: torch.isin(x.round(), torch.tensor([0.0, 1.0]), invert=True).float() + y,
    ],
}


@pytest.mark.parametrize(
    ("name", "place"), [(name, i) for name, uses in USES.items() for i in range(len(uses))]
)
def test_an_op_gives_what_pytorch_gives(name, place):
    draw = torch.Generator().manual_seed(place)
    samples = [tuple(3 * torch.randn(2, 1, 4, 6, generator=draw)) for _ in range(100)]
    prepared = prepare(Applied(USES[name][place]), samples)
    assert prepared.precast.added == (name,)
    every = Precision.all_fp32(len(prepared.ops))
    backend = prepared.evaluator().backend
    for sample, reference in enumerate(prepared.references):
        (given,) = backend.outputs(every, sample).values()
        (wanted,) = reference.values()
        assert given.shape == wanted.shape
        assert torch.allclose(given.float(), wanted.float(), rtol=2e-5, atol=2e-5)


def test_every_op_is_tested():
    """``alias`` stands in decomposed programs alone, where coremltools is asked last."""
    assert set(USES) == set(CONVERSIONS) - {"alias"}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_what_is_carried_along_is_all_that_an_op_needs(name):
    scope: dict = {}
    exec("\n".join([IMPORTS, *sources([name])]), scope)
    functions = [value for value in scope.values() if isinstance(value, types.FunctionType)]
    ours = [f for f in functions if f.__code__.co_filename == "<string>"]
    called = {n for f in ours for n in f.__code__.co_names if n.startswith("_")}
    assert called <= set(scope) | {"_upsample_bicubic2d_aa"}


def test_coremltools_own_conversions_stay():
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    before = dict(_TORCH_OPS_REGISTRY.name_to_func_mapping)
    theirs = next(iter(before))
    with registered():
        during = _TORCH_OPS_REGISTRY.name_to_func_mapping
        assert during[theirs] is before[theirs] and set(during) > set(before)
    assert _TORCH_OPS_REGISTRY.name_to_func_mapping == before


class Tokens(nn.Module):
    """Attention over tokens behind each other, made as transformers 5 makes its mask."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 16)
        self.out = nn.Linear(16, 20)

    def forward(self, ids):
        x = self.embed(ids)
        seen = ids.new_ones((6, 6), dtype=torch.bool).tril()
        steps = torch.diff(ids, prepend=ids[:, :1] - 1).float()
        scores = (x @ x.transpose(1, 2)).masked_fill(~seen, -1e4)
        return self.out(torch.softmax(scores, -1) @ x) + steps[..., None]


def test_a_package_with_them_is_plain_and_made_again_alone(tmp_path):
    draw = torch.Generator().manual_seed(0)
    samples = [torch.randint(0, 20, (1, 6), generator=draw) for _ in range(8)]
    found = mpsearch.optimize(Tokens(), samples, 1e-2)
    assert any("new_ones, diff" in note for note in found.notes)
    found.save(tmp_path / "out")
    with quiet():
        spec = ct.models.MLModel(
            str(tmp_path / "out" / "model.mlpackage"), skip_model_load=True
        ).get_spec()
    (function,) = spec.mlProgram.functions.values()
    (block,) = function.block_specializations.values()
    assert not {op.type for op in block.operations if "custom" in op.type}
    package = alone(tmp_path / "out", Tokens(), samples[0], tmp_path)
    assert contents(package) == contents(tmp_path / "out" / "model.mlpackage")


def test_pytorchs_own_encoder_takes_a_padding_mask():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    draw = torch.Generator().manual_seed(1)
    samples = [
        {
            "src": torch.randn(1, 6, 16, generator=draw),
            "src_key_padding_mask": torch.arange(6)[None] >= 6 - place % 3,
        }
        for place in range(8)
    ]
    fast = torch.backends.mha.get_fastpath_enabled()
    found = mpsearch.optimize(model, samples, 1e-2)
    assert found.met and torch.backends.mha.get_fastpath_enabled() is fast
