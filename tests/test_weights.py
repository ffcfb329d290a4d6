"""Weights stored otherwise: in the package as read back, within the budget, and smaller."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import mpsearch
from mpsearch.executor.predict import open_package
from mpsearch.program import lowering as program


class Mixed(torch.nn.Module):
    """A linear layer that has to stay FP32, and one that need not."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(64, 96)
        self.second = torch.nn.Linear(96, 64)

    def forward(self, x):
        y = self.first(x) * 300.0
        return self.second(torch.sqrt(y * y + 1.0) / 300.0)


def _search(keep_fp32=(), **conversion):
    torch.manual_seed(0)
    data = [torch.randn(1, 64) * 3 for _ in range(12)]
    model = Mixed().eval()
    result = mpsearch.optimize(
        model,
        data,
        2e-2,
        conversion=mpsearch.Conversion(**conversion),
        constraints=mpsearch.Constraints(keep_fp32=keep_fp32),
    )
    return model, data, result


def _stored(path):
    """Per constexpr op of a package: its type, and the dtype that it gives."""
    model = open_package(path / "model.mlpackage")
    read = program.load_program(model.get_spec(), model.weights_dir)
    ops = program.all_ops(read.functions["main"])
    found = [op for op in ops if op.op_type.startswith("constexpr_")]
    return [(op.op_type, program.dtype_of(op.outputs[0])) for op in found]


def _error(path, model, data):
    executor = mpsearch.Executor(str(path / "model.mlpackage"))
    worst = 0.0
    for x in data:
        (name,) = executor.input_ranks()
        (out,) = executor.predict({name: x.numpy()}).values()
        with torch.no_grad():
            wanted = model(x).numpy()
        worst = max(worst, float(np.linalg.norm(out - wanted) / np.linalg.norm(wanted)))
    return worst


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("storage", "target", "op_type"),
    [
        ("fp16", "iOS17", "constexpr_cast"),
        ("fp16", "iOS18", "constexpr_cast"),
        ("int8", "iOS16", "constexpr_affine_dequantize"),
        ("int8", "iOS18", "constexpr_blockwise_shift_scale"),
    ],
)
def test_the_package_read_back_is_smaller_and_within_the_budget(tmp_path, storage, target, op_type):
    _, _, plain = _search(target=target, keep_fp32=["type:linear"])
    model, data, result = _search(target=target, weight_dtype=storage, keep_fp32=["type:linear"])
    assert result.met and result.weights.weights == result.weights.candidates == 2
    assert result.fp32_ops == plain.fp32_ops and result.casts == plain.casts
    assert result.weights.bytes_before == plain.package_bytes
    # 2 weights of 6144 numbers: 4 bytes each became 2, or 1 and a scale for every channel.
    saved = plain.package_bytes - result.package_bytes
    assert saved > 2 * 6144 * {"fp16": 2, "int8": 3}[storage] * 0.9
    out = result.save(tmp_path / "out")
    assert _stored(out) == [(op_type, "fp32")] * 2
    assert _error(out, model, data) == pytest.approx(max(result.error, result.heldout_error), 1e-3)
    assert max(result.error, result.heldout_error) <= 2e-2


def test_fp16_weights_of_fp16_ops_are_left_alone():
    _, _, result = _search(weight_dtype="fp16")
    assert result.met and result.weights.candidates == 0


def test_only_what_the_budget_allows_is_stored(tmp_path):
    torch.manual_seed(0)
    data = [torch.randn(1, 64) * 3 for _ in range(12)]
    model = Mixed().eval()
    free = mpsearch.optimize(
        model,
        data,
        2e-2,
        conversion=mpsearch.Conversion(weight_dtype="int8"),
        constraints=mpsearch.Constraints(keep_fp32=["type:*"]),
    )
    assert free.weights.weights == 2
    tight = mpsearch.optimize(
        model,
        data,
        free.error / 2,
        conversion=mpsearch.Conversion(weight_dtype="int8"),
        constraints=mpsearch.Constraints(keep_fp32=["type:*"]),
    )
    assert tight.met and tight.weights.weights < 2
    assert tight.error <= free.error / 2


def test_weights_that_break_held_out_samples_are_stored_as_typed():
    model = torch.nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        model.weight[:, :32], model.weight[:, 32:] = 127.0, 0.3  # in int8 the small ones are 0
    large, small = torch.zeros(1, 64), torch.zeros(1, 64)
    large[:, :32], small[:, 32:] = 1.0, 1.0
    results = [
        mpsearch.optimize(
            model,
            data,
            0.3,
            heldout=0.5,
            conversion=mpsearch.Conversion(weight_dtype="int8"),
            constraints=mpsearch.Constraints(keep_fp32=["type:linear"]),
        )
        for data in ([large, small], [small, large])  # either is the one held out, once
    ]
    assert all(result.met for result in results)
    assert sum("as int8 they break held-out" in note for r in results for note in r.notes) == 1


def test_apply_stores_them_again(tmp_path):
    model, _, result = _search(weight_dtype="int8")
    out = result.save(tmp_path / "out")
    assert json.loads((out / "precision.json").read_text())["weights"]["dtype"] == "int8"
    (tmp_path / "again").mkdir()
    mpsearch.apply(out, model).save(str(tmp_path / "again" / "model.mlpackage"))
    assert _stored(tmp_path / "again") == _stored(out) != []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_dtype": "int4"}, "fp16, int8"),
        ({"weight_dtype": "fp16", "target": "iOS15"}, "iOS16"),
    ],
)
def test_what_cannot_be_is_one_line(options, message):
    with pytest.raises(mpsearch.InputError, match=message):
        _search(**options)
