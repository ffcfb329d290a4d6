"""Sources and inputs of every kind, and what mpsearch leaves as it found it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import mpsearch
from mpsearch._ct import ct, quiet
from mpsearch.package.emission import convert, selector
from mpsearch.program.precision import Precision
from mpsearch.source import modules
from mpsearch.source.prepare import prepare
from tests import scalable
from tests.models import Activations, Carried, Many, Mixed, TwinBlocks, batches, net


def searched(model, data, budget=1e-2, **conversion):
    return mpsearch.optimize(model, data, budget, conversion=mpsearch.Conversion(**conversion))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_models_are_searched_on_an_fp32_copy(dtype):
    """LeakyReLU, RReLU, PReLU and ELU stop coremltools in half models (#2470, #2480)."""
    torch.manual_seed(0)
    model = Activations().eval().to(dtype)
    data = [torch.randn(1, 8, dtype=dtype) for _ in range(4)]
    result = searched(model, data)
    assert result.met
    assert next(model.parameters()).dtype is dtype
    assert any("half-precision" in note for note in result.notes)
    (feature,) = result.mlmodel.get_spec().description.input
    assert feature.type.multiArrayType.dataType == 65552  # FLOAT16, as the model has it
    fp32 = searched(model, data, io_dtype="fp32")
    (feature,) = fp32.mlmodel.get_spec().description.input
    assert feature.type.multiArrayType.dataType == 65568  # FLOAT32, as asked


def test_models_with_half_precision_parts():
    torch.manual_seed(0)
    model = Mixed()
    result = searched(model, [torch.randn(1, 8) for _ in range(2)])
    assert result.met and result.error_fp32 < 1e-5
    assert model.b.weight.dtype is torch.float16


def test_many_inputs_and_outputs():
    torch.manual_seed(0)
    model = Many().eval()
    ids = torch.randint(0, 16, (1, 5))
    data = [
        {"ids": ids, "scale": torch.rand(1, 5, 1), "mask": torch.tensor([[1, 1, 1, 0, 0]]) > 0}
        for _ in range(3)
    ]
    result = searched(model, data)
    assert result.met
    got = mpsearch.Executor(result.mlmodel).predict(
        {"ids": ids.numpy(), "scale": data[0]["scale"], "mask": data[0]["mask"].int()}
    )
    wanted = model(**data[0])
    assert set(got) == {"logits", "hidden_0", "hidden_1"}
    np.testing.assert_allclose(got["logits"], wanted.logits.detach(), rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(got["hidden_1"], wanted.hidden[1].detach(), rtol=1e-2, atol=1e-2)


@pytest.mark.thorough
def test_inputs_of_every_form_mean_the_same():
    x = batches()[:2]
    loader = torch.utils.data.DataLoader(torch.cat(x), batch_size=1)
    forms = [x, [(v,) for v in x], [{"x": v} for v in x], [v.numpy() for v in x], loader]
    errors = {searched(net(), form).error_fp16 for form in forms}
    assert len(errors) == 1


def test_task_metric_gets_targets_from_a_loader():
    labels = torch.tensor([0, 1, 2, 0])
    data = torch.utils.data.TensorDataset(torch.cat(batches()), labels)
    seen = []

    def score(outputs, targets):
        seen.append(len(targets))
        assert all(isinstance(o["output"], np.ndarray) for o in outputs)
        return 1.0

    loader = torch.utils.data.DataLoader(data, batch_size=1)
    tolerant = mpsearch.Constraints(tolerate_overflow=True)
    result = mpsearch.optimize(net(), loader, 0.1, score, targets="pairs", constraints=tolerant)
    assert result.status == "fp16_suffices" and set(seen) == {3, 1}


def test_flexible_shapes_come_from_the_samples():
    generator = torch.Generator().manual_seed(0)
    data = [500 * torch.randn(1, n, 8, generator=generator) for n in (2, 4, 6, 3)]
    result = searched(net(), data)
    assert result.met
    executor = mpsearch.Executor(result.mlmodel)
    for x in data:
        assert executor.predict({"x": x})["output"].shape == (1, x.shape[1], 3)


def test_the_callers_model_and_random_state_are_left_alone():
    model = net().train()
    model.blocks[0].eval()
    state = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    classes = [type(m) for m in model.modules()]
    torch.manual_seed(3)
    np.random.seed(3)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy())
    searched(model, batches())
    assert [m.training for m in model.modules()] == modes
    assert [type(m) for m in model.modules()] == classes
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_parameters_are_shared_not_copied():
    model = net()
    copied = modules.TorchModel(model).module
    assert copied.head.weight.data_ptr() == model.head.weight.data_ptr()


def test_layers_tell_twin_modules_apart():
    prepared = prepare(TwinBlocks(), [torch.randn(1, 4)])
    layers = [op.layer for op in prepared.ops if op.type == "linear"]
    assert layers == ["encoder.0", "encoder.1", "decoder.0", "decoder.1"]


def test_ops_have_the_same_names_whatever_was_converted_before():
    """coremltools numbers ops without a name on from those that it built last."""
    torch.manual_seed(0)
    model, data = TwinBlocks().eval(), [torch.randn(1, 4)]
    before = [op.name for op in prepare(model, data).ops]
    for seed in range(8):
        scalable.program(seed, 8)
    assert [op.name for op in prepare(model, data).ops] == before


@pytest.mark.parametrize("target", ["iOS15", "iOS16", "iOS17", "iOS18"])
def test_candidates_are_what_op_selector_sees(target):
    """Names of the pre-cast program against a full conversion by coremltools itself."""
    prepared = prepare(net(), batches(), conversion=mpsearch.Conversion(target=target))
    seen = {}

    def op_selector(op):
        seen[op.name] = op.op_type
        return True

    with quiet():
        ct.convert(
            torch.jit.trace(net().eval(), batches()[0]),
            inputs=[p.tensor_type() for p in prepared.precast.inputs],
            outputs=[p.tensor_type(output=True) for p in prepared.precast.outputs],
            compute_precision=ct.transform.FP16ComputePrecision(op_selector=op_selector),
            minimum_deployment_target=getattr(ct.target, target),
            skip_model_load=True,
        )
    ops = {name: kind for name, kind in seen.items() if kind != "const"}
    assert {op.name: op.type for op in prepared.ops} == ops


@pytest.mark.thorough
@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_fp16_forms_are_coremltools_own(target):
    """A random vector: the evaluator against the package that coremltools makes of it.

    Small epsilons, masks and activation parameters are where the cast pass has rules.
    """

    class Rules(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.LayerNorm(8, eps=1e-12)
            self.act = torch.nn.LeakyReLU(0.1)

        def forward(self, x):
            masked = x.masked_fill(x > 1, torch.finfo(torch.float32).min)
            y = self.act(self.norm(torch.softmax(masked, -1)))
            return y * torch.rsqrt(y * y + 1e-8) + torch.nn.functional.elu(x, 0.3)

    torch.manual_seed(0)
    data = [torch.randn(1, 4, 8)]
    prepared = prepare(Rules(), data, conversion=mpsearch.Conversion(target=target))
    evaluator = prepared.evaluator()
    random = np.random.default_rng(0)
    for _ in range(6):
        fp32 = random.random(len(prepared.ops)) < 0.5
        kept = frozenset(np.flatnonzero(fp32).tolist())
        (wanted,) = evaluator.engine.outputs(Precision(kept, len(prepared.ops)), 0).values()
        names = [op.name for op in prepared.ops if fp32[op.index]]
        model = convert(prepared.precast, selector(names))
        (got,) = mpsearch.Executor(model).predict({"x": data[0]}).values()
        np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-3, atol=1e-6)


def test_an_op_that_cannot_be_converted_is_named_with_what_to_do():
    class Eigenvalues(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.eigvalsh(x @ x.transpose(-1, -2))

    data = [torch.randn(1, 4, 4) for _ in range(3)]
    with pytest.raises(mpsearch.InputError, match=r"linalg_eigvalsh.*register_torch_op"):
        mpsearch.optimize(Eigenvalues(), data, 1e-2)


def test_an_input_of_rank_0_is_refused_with_what_to_do():
    class Scaled(torch.nn.Module):
        def forward(self, x, scale):
            return x * scale

    data = [(torch.randn(1, 4), torch.tensor(2.0)) for _ in range(3)]
    with pytest.raises(mpsearch.InputError, match=r"'scale' is a tensor of rank 0.*\(1,\)"):
        mpsearch.optimize(Scaled(), data, 1e-2)


def test_a_renamed_input_is_said_and_known_by_both_names(tmp_path):
    draw = torch.Generator().manual_seed(0)
    data = [
        {"x": torch.randn(1, 8, generator=draw), "state": torch.randn(1, 8, generator=draw)}
        for _ in range(4)
    ]
    other = [{"x": sample["x"], "state_workaround": sample["state"]} for sample in data]
    found = searched(Carried(), data)
    assert (
        "Input 'state' is named 'state_workaround' in the package: coremltools reserves the name."
    ) in found.notes
    assert any("'list' is named 'list_workaround'" in note for note in found.notes)
    found.save(tmp_path / "out")
    executor = mpsearch.Executor(tmp_path / "out" / "model.mlpackage")
    one, two = executor.predict([data[0], other[0]])
    assert all(np.array_equal(one[name], two[name]) for name in one)
    with pytest.raises(mpsearch.InputError, match="'state' is not known"):
        executor.predict(data[0] | other[0])
    package = mpsearch.convert(Carried(), data[0])
    for model in (Carried(), package):
        held = [mpsearch.check(tmp_path / "out", model, given).error for given in (data, other)]
        assert held[0] == held[1] <= 1e-2


def test_the_logger_says_what_is_done(caplog):
    with caplog.at_level("DEBUG", logger="mpsearch"):
        found = mpsearch.optimize(net(), batches(), 1e-2)
    said = [record.getMessage() for record in caplog.records if record.name == "mpsearch"]
    assert "converting" in said
    assert sum("ops in FP32, loss" in line for line in said) <= found.evaluations
    assert any("ops in FP32, loss" in line for line in said)
