"""PyTorch ops that coremltools does not convert: beside PyTorch, and in a package of its own."""

from __future__ import annotations

import runpy
import types

import pytest
import torch
from torch import nn

import mpsearch
from mpsearch._ct import ct, quiet
from mpsearch.program.precision import Precision
from mpsearch.source.prepare import prepare
from mpsearch.source.torch_ops import CONVERSIONS, IMPORTS, PARTLY, registered, sources
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
    "unsafe_chunk": [
        lambda x, y: x.unsafe_chunk(4, -1)[2] * y.unsafe_chunk(3, -1)[0],
        lambda x, y: sum(x.unsafe_chunk(1)) + y,
    ],
    "prelu": [
        lambda x, y: F.prelu(x[0], torch.arange(6.0)) + y,
        lambda x, y: F.prelu(x, torch.arange(4.0)) + F.prelu(y, torch.tensor([0.1])),
        lambda x, y: F.prelu((x + y)[..., None, None], torch.arange(4.0)),
    ],
    "isin": [
        lambda x, y: torch.isin(x.round(), torch.tensor([0.0, 1.0])).float() + y,
        lambda x, y: torch.isin(x.round(), torch.tensor([0.0, 1.0]), invert=True).float() + y,
    ],
}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "place"), [(name, i) for name, uses in USES.items() for i in range(len(uses))]
)
def test_an_op_gives_what_pytorch_gives(name, place):
    draw = torch.Generator().manual_seed(place)
    samples = [tuple(3 * torch.randn(2, 1, 4, 6, generator=draw)) for _ in range(100)]
    prepared = prepare(Applied(USES[name][place]), samples)
    assert prepared.precast.added == (name,)
    every = Precision.all_fp32(len(prepared.ops))
    backend = prepared.evaluator().engine
    for sample, reference in enumerate(prepared.references):
        (given,) = backend.outputs(every, sample).values()
        (wanted,) = reference.values()
        assert given.shape == wanted.shape
        assert torch.allclose(given.float(), wanted.float(), rtol=2e-5, atol=2e-5)


def test_every_op_is_tested():
    """``alias`` stands in decomposed programs alone, where coremltools is asked last."""
    assert set(USES) | set(CELLS) | SCRIPTED == set(CONVERSIONS) - {"alias"}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_what_is_carried_along_is_all_that_an_op_needs(name):
    scope: dict = {}
    exec("\n".join([IMPORTS, *sources([name])]), scope)
    functions = [value for value in scope.values() if isinstance(value, types.FunctionType)]
    ours = [f for f in functions if f.__code__.co_filename == "<string>"]
    called = {n for f in ours for n in f.__code__.co_names if n.startswith("_")}
    assert called <= set(scope) | {"_upsample_bicubic2d_aa", "__name__"}


def test_coremltools_own_conversions_stay():
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    before = dict(_TORCH_OPS_REGISTRY.name_to_func_mapping)
    with registered():
        during = dict(_TORCH_OPS_REGISTRY.name_to_func_mapping)
        changed = {name for name in before if during[name] is not before[name]}
        assert changed == PARTLY and set(during) > set(before)
    assert _TORCH_OPS_REGISTRY.name_to_func_mapping == before


class Cell(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x, h):
        return self.cell(x, h)


class LongCell(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x, h):
        hidden, cell = self.cell(x, (h, 2 * h))
        return hidden + cell


CELLS = {
    "lstm_cell": lambda: LongCell(nn.LSTMCell(6, 4)),
    "gru_cell": lambda: Cell(nn.GRUCell(6, 4)),
    "rnn_tanh_cell": lambda: Cell(nn.RNNCell(6, 4)),
    "rnn_relu_cell": lambda: Cell(nn.RNNCell(6, 4, bias=False, nonlinearity="relu")),
}


class Front(nn.Module):
    """As silero-vad begins: scripted, with strides that are attributes, and checks of ranks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stride, self.scale, self.doubled = 2, 0.5, True
        self.weight = nn.Parameter(torch.randn(6, 3, 3))
        self.parts = nn.ModuleList([nn.Linear(6, 6)])

    def forward(self, x, scale: torch.Tensor | None = None):
        if len(x.shape) not in [2, 3]:
            raise ValueError(f"rank 2 or 3, got {x.dim()}")
        if scale is None:
            scale = torch.ones(1)
        factor = self.scale if scale is not None else 1.0
        if len(x):
            x = torch.conv1d(x, self.weight, None, [self.stride], [1])
        outs = [x.mean(-1) * factor, x.data.amax(-1)]
        for part in self.parts:
            outs.append(part(outs[0]))
        if not self.doubled:
            return outs[0]
        return torch.stack(outs).sum(0) / len(outs) * scale


#: Of :class:`Front`.
SCRIPTED = {
    "len",
    "contains",
    "not",
    "is",
    "isnot",
    "if",
    "data",
    "unchecked_cast",
    "uninitialized",
}


def parted(model, samples):
    """How far the converted program is from PyTorch, and what was converted by mpsearch."""
    prepared = prepare(model, samples)
    backend = prepared.evaluator().engine
    every = Precision.all_fp32(len(prepared.ops))
    found = 0.0
    for sample, reference in enumerate(prepared.references):
        for name, given in backend.outputs(every, sample).items():
            assert given.shape == reference[name].shape
            found = max(found, float((given - reference[name]).abs().max()))
    return found, prepared


@pytest.mark.parametrize("how", ["scripted", "traced"])
@pytest.mark.parametrize("name", CELLS)
def test_cells_in_torchscript_are_converted(name, how):
    torch.manual_seed(0)
    samples = [(torch.randn(1, 6), torch.randn(1, 4)) for _ in range(8)]
    cell = CELLS[name]().eval()
    script = torch.jit.script(cell) if how == "scripted" else torch.jit.trace(cell, samples[0])
    error, prepared = parted(script, samples)
    assert error < 1e-5
    if how == "scripted":
        assert name in prepared.precast.added


def test_scripted_code_with_attributes_and_checks_is_converted():
    samples = [(torch.randn(1, 3, 16), torch.rand(1)) for _ in range(4)]
    error, prepared = parted(torch.jit.script(Front().eval()), samples)
    assert error < 1e-5 and prepared.precast.frozen
    assert set(prepared.precast.added) <= SCRIPTED
    assert {"len", "contains", "not", "if"} <= set(prepared.precast.added)


class Around(nn.Module):
    """Traced code around scripted code that has several outputs, by name."""

    def __init__(self):
        super().__init__()
        self.front = torch.jit.script(Front())

    def forward(self, x, scale):
        y = self.front(x, scale)
        return {"y": y, "largest": y.amax(-1)}


def test_scripted_parts_of_a_traced_model_are_converted():
    samples = [(torch.randn(1, 3, 16), torch.rand(1)) for _ in range(4)]
    error, prepared = parted(Around().eval(), samples)
    assert error < 1e-5 and prepared.precast.frozen


@pytest.mark.thorough
@pytest.mark.parametrize("around", [False, True], ids=["file", "traced"])
def test_a_package_of_scripted_code_is_made_again_alone(around, tmp_path):
    samples = [(torch.randn(1, 3, 16), torch.rand(1)) for _ in range(4)]
    model = Around().eval() if around else tmp_path / "front.pt"
    if not around:
        torch.jit.script(Front().eval()).save(model)
    pins = mpsearch.Constraints(keep_fp32=["type:linear", "type:reduce_max"])
    found = mpsearch.optimize(model, samples, 1e-2, constraints=pins)
    assert len(found.fp32_ops) >= 2
    found.save(tmp_path / "out")
    if around:  # cannot be pickled
        package = tmp_path / "again.mlpackage"
        with registered(), quiet():
            made = runpy.run_path(str(tmp_path / "out" / "op_selector.py"))
            made["convert"](made["trace"](model, samples[0])).save(str(package))
    else:
        package = alone(tmp_path / "out", model, samples[0], tmp_path)
    assert contents(package) == contents(tmp_path / "out" / "model.mlpackage")


def test_a_scripted_model_of_the_callers_stays_as_it_is():
    """coremltools inlines graphs in place, which copies of a ScriptModule share."""
    script = torch.jit.script(Front().eval())
    before = str(script.graph)
    samples = [(torch.randn(1, 3, 16), torch.rand(1)) for _ in range(2)]
    first, second = (prepare(script, samples).ops for _ in range(2))
    assert str(script.graph) == before
    assert [(op.name, op.layer) for op in first] == [(op.name, op.layer) for op in second]


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = torch.zeros(1, 4)

    def forward(self, x):
        self.last = 0.5 * self.last + x
        return self.last


class Checking(nn.Module):
    def forward(self, x):
        if x.sum() > 1000:
            raise ValueError("too large")
        return x * 2


@pytest.mark.parametrize(
    ("model", "said"), [(Counting, "assigns last, .* as inputs"), (Checking, "take the check")]
)
def test_scripted_code_that_cannot_be_converted_says_what_to_change(model, said):
    with pytest.raises(mpsearch.InputError, match=said):
        prepare(torch.jit.script(model()), [torch.ones(1, 4) for _ in range(2)])


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


@pytest.mark.thorough
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
