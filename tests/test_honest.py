"""No wrong answer with a straight face: what cannot be judged is refused or said."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mpsearch
from benchmarks import holds
from mpsearch.evaluation.metrics import resolve
from mpsearch.executor.ops import OPS
from mpsearch.numerics.profiles import PROFILES
from mpsearch.program.precision import Precision
from mpsearch.results import rows
from mpsearch.search.samples import Kind, Sample
from mpsearch.search.search import Trial
from mpsearch.source.prepare import prepare
from tests.command import run
from tests.models import Cache, Norm, batches, net
from tests.planted import Planted
from tests.planted import samples as planted_samples

NET = "tests.models:net"
DATA = "tests.models:batches"


def given():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 4, 8, generator=generator) for _ in range(4)]


def module(forward):
    class Made(torch.nn.Module):
        pass

    Made.forward = lambda self, x: forward(x)
    return Made()


# --- references ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda x: x / 0, "NaN or infinite everywhere"),
        (lambda x: x * math.nan, "NaN or infinite everywhere"),
        (lambda x: x[:, :0], "no values"),
        (lambda x: None, "expected"),
        (lambda x: {}, "expected"),
    ],
)
@pytest.mark.parametrize("verb", [mpsearch.analyze, mpsearch.pareto, mpsearch.optimize])
def test_nothing_to_compare_with_is_no_verdict(forward, said, verb):
    budget = (1e-2,) if verb is mpsearch.optimize else ()
    with pytest.raises(mpsearch.InputError, match=said):
        verb(module(forward), given(), *budget)


def test_values_that_are_nan_in_fp32_as_well_are_counted_and_said():
    result = mpsearch.optimize(
        module(lambda x: torch.log(x)), given(), 1e-2, execution=mpsearch.Execution(progress=False)
    )
    lost = sum(int((x <= 0).sum()) for x in given())
    assert any(f"{lost:,} values" in note for note in result.notes)
    assert result.error <= 1e-2


def test_samples_without_values_are_refused():
    with pytest.raises(mpsearch.InputError, match="no values"):
        mpsearch.optimize(net(), [torch.zeros(0, 4, 8)], 1e-2)


# --- models that are not what they seem ------------------------------------------------------


def test_a_model_that_writes_into_its_input_is_searched_on_copies():
    def in_place(x):
        x.mul_(3.0)
        return Norm()(100 * x)

    data = [100 * x for x in given()]
    before = [x.clone() for x in data]
    result = mpsearch.optimize(
        module(in_place), data, 1e-2, execution=mpsearch.Execution(progress=False)
    )
    assert all(torch.equal(a, b) for a, b in zip(data, before, strict=True))
    plain = module(lambda x: Norm()(100 * (x * 3.0)))
    expected = mpsearch.optimize(plain, data, 1e-2, execution=mpsearch.Execution(progress=False))
    assert result.status == expected.status == "met"
    assert len(result.fp32_ops) == len(expected.fp32_ops)


class Counter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize(
    "model",
    [
        module(lambda x: x + torch.randn_like(x)),
        module(lambda x: torch.nn.functional.dropout(x, 0.5, training=True)),
        Counter(),
    ],
    ids=["noise", "dropout", "counter"],
)
def test_a_model_that_disagrees_with_itself_is_called_that(model):
    for verb in (
        lambda: mpsearch.optimize(model, given(), 1e-2),
        lambda: mpsearch.analyze(model, given()),
    ):
        with pytest.raises(mpsearch.InputError, match="other outputs when it is called again"):
            verb()


# --- targets and states ----------------------------------------------------------------------


class Scaled(torch.nn.Module):
    def forward(self, x, scale=None):
        return x * 2 if scale is None else Norm()(x * scale)


def test_the_second_of_a_pair_is_an_input_unless_said_otherwise():
    pairs = [(x, torch.full((1,), 500.0)) for x in given()]
    result = mpsearch.optimize(Scaled(), pairs, 1e-2, execution=mpsearch.Execution(progress=False))
    assert result.status == "met" and result.fp32_ops  # of the function with the scale
    assert "scale" in result.understood and "target" not in result.understood
    other = mpsearch.optimize(
        Scaled(), pairs, 1e-2, targets="pairs", execution=mpsearch.Execution(progress=False)
    )
    assert other.status == "fp16_suffices" and "target" in other.understood


def test_the_summary_says_what_the_data_was_taken_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = run("optimize", NET, "--inputs", DATA, "--budget", "1e-2").stdout
    assert re.search(r"^  data +4 samples of x \(1, 4, 8\); 1 of them held out$", out, re.M)


def test_apply_and_check_keep_the_states(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = [torch.randn(1, 1, 8) for _ in range(4)]
    conversion = mpsearch.Conversion(target="iOS18", states=["keys"])
    found = mpsearch.optimize(Cache().eval(), data, 1e-2, conversion=conversion)
    found.save("out")
    assert json.loads(Path("out/precision.json").read_text())["conversion"]["states"] == ["keys"]
    torch.manual_seed(0)
    made = mpsearch.apply("out", found_model := Cache().eval(), data)
    assert [s.name for s in made.get_spec().description.state] == ["keys"]
    checked = mpsearch.check("out", found_model, data)
    assert checked.holds == (checked.error <= checked.budget)


# --- numbers ---------------------------------------------------------------------------------


def test_the_front_holds_the_true_error_of_every_set():
    model, data = Planted(1).eval(), planted_samples(1)
    for numerics in ("ieee", "ieee,strict"):
        front = mpsearch.pareto(
            model, data, points=4, numerics=numerics, limits=mpsearch.Limits(trials=60)
        )
        prepared = prepare(model, data, numerics=numerics, heldout=0.3)
        evaluator = prepared.evaluator()
        names = [op.name for op in prepared.ops]
        for point in front.points:
            kept = {i for i, name in enumerate(names) if name in point.fp32_ops}
            loss = evaluator.loss(Precision.of(kept, len(names)))
            assert point.error == pytest.approx(loss, rel=1e-6, abs=1e-6)


def _einsum(dtype):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(s, generator=generator) for s in ((2, 64, 128), (2, 128, 8)))
    return {"values": [a, b], "equation": "nij,njk->nik"}


def _random(*shape, scale=1.0, shift=0.0):
    return shift + scale * torch.randn(shape, generator=torch.Generator().manual_seed(1))


STEPWISE = {
    "einsum": lambda: _einsum(torch.float32),
    "matmul": lambda: {"x": _random(4, 128), "y": _random(128, 4)},
    "conv_transpose": lambda: {
        "x": _random(1, 64, 7),
        "weight": _random(64, 3, 3),
        "strides": [3],
        "dilations": [2],
    },
    "cumsum": lambda: {"x": _random(3, 500, shift=1.0), "axis": 1},
    "avg_pool": lambda: {
        "x": _random(1, 4, 32, 32, shift=1.0),
        "kernel_sizes": [9, 9],
        "strides": [2, 2],
        "pad_type": "valid",
    },
    "local_response_norm": lambda: {"x": _random(1, 40, 4, 4, scale=10.0), "size": 5},
    "reduce_prod": lambda: {"x": _random(3, 200, scale=0.01, shift=1.0), "axes": [1]},
    "reduce_sum": lambda: {"x": _random(3, 2000, shift=1.0), "axes": [1]},
}


@pytest.mark.parametrize("op_type", STEPWISE)
def test_strict_rounds_between_the_steps_of_whatever_has_steps(op_type):
    """Different from one rounding at the end, and no further from the truth than FP16 steps go."""
    function = OPS[op_type].function
    half = {
        k: [x.half().float() for x in v]
        if isinstance(v, list) and isinstance(v[0], torch.Tensor)
        else v.half().float()
        if isinstance(v, torch.Tensor)
        else v
        for k, v in STEPWISE[op_type]().items()
    }
    once = PROFILES["ieee"].run(op_type, function, half, ("fp32",), True)[0]
    steps = PROFILES["strict"].run(op_type, function, half, ("fp32",), True)[0]
    assert once.shape == steps.shape and not torch.equal(once, steps)
    far = float((steps - once).norm() / once.norm())
    assert 1e-5 < far < 0.2


def test_cumsum_in_strict_is_a_running_fp16_sum():
    """NumPy, adding one by one in FP16."""
    x = _random(1, 300, shift=1.0).half().float()
    total, sums = np.float16(0), []
    for value in x[0].numpy().astype(np.float16):
        total = np.float16(total + value)
        sums.append(float(total))
    got = PROFILES["strict"].run(
        "cumsum", OPS["cumsum"].function, {"x": x, "axis": 1}, ("fp32",), True
    )
    assert got[0][0].tolist() == sums


def test_no_sentinel_is_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = run("optimize", NET, "--inputs", DATA, "--budget", "1e-2", "-o", "out").stdout
    analysis = run("analyze", NET, "--inputs", DATA).stdout
    texts = [
        out,
        analysis,
        Path("out/report.html").read_text(),
        Path("out/op_selector.py").read_text(),
    ]
    texts.append(Path("out/result.json").read_text())
    texts.append(Path("out/precision.json").read_text())
    assert not any(re.search(r"1e\+(15|30)|1000000000000000", text) for text in texts)


def test_trials_count_ops_also_where_layers_are_chosen():
    model, data = Planted(2).eval(), planted_samples(2)
    result = mpsearch.optimize(
        model,
        data,
        1e-3,
        constraints=mpsearch.Constraints(by="layer"),
        execution=mpsearch.Execution(progress=False),
    )
    trials = result.as_dict()["trials"]
    ends = [t for t in trials if t["pass"] == "ends"]
    assert max(t["fp32_ops"] for t in ends) == result.candidate_ops
    assert any(t["met"] and t["fp32_ops"] == len(result.fp32_ops) for t in trials)


def test_kept_overflows_stand_at_the_top_of_the_chart():
    result = mpsearch.optimize(net(), batches(), 1e-2, execution=mpsearch.Execution(progress=False))
    alone = {op.name: op.sensitivity for op in result.kept}
    rows = {op.name: op for op in result.ops}
    for name, value in alone.items():
        assert rows[name].sensitivity == value
    others = [row.sensitivity for row in result.ops if row.name not in alone]
    assert min(alone.values()) > 100 * max(others)


def test_seconds_are_those_of_the_whole_call():
    import time

    started = time.perf_counter()
    result = mpsearch.optimize(
        Planted(0).eval(), planted_samples(0), 1e-3, execution=mpsearch.Execution(progress=False)
    )
    whole = time.perf_counter() - started
    assert 0.9 * whole <= result.seconds <= whole


# --- options ---------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(
    "budget", [math.nan, -1.0, 0.0, math.inf, None, "1e-3", Path("x"), True, 1j]
)
def test_a_budget_is_a_positive_number(budget, tmp_path):
    result = mpsearch.optimize(net(), batches(), 1e-2, execution=mpsearch.Execution(progress=False))
    result.save(tmp_path / "out")
    calls = [lambda: mpsearch.optimize(net(), batches(), budget)]
    if budget is not None:
        calls.append(lambda: mpsearch.analyze(net(), batches(), budget=budget))
        calls.append(lambda: mpsearch.check(tmp_path / "out", net(), batches(), budget=budget))
    for call in calls:
        with pytest.raises(mpsearch.InputError, match="budget"):
            call()


@pytest.mark.thorough
def test_a_package_written_over_its_source_is_refused_or_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = mpsearch.optimize(
        net(),
        batches(),
        1e-2,
        constraints=mpsearch.Constraints(keep_fp32=["op:*"]),
        execution=mpsearch.Execution(progress=False),
    )
    result.save("out")
    shutil.copytree("out/model.mlpackage", "fp32.mlpackage")
    np.savez("x.npz", x=torch.cat(batches()).numpy())
    run("optimize", "fp32.mlpackage", "--inputs", "x.npz", "--budget", "1e-2", "-o", "mixed")
    run("apply", "mixed", "fp32.mlpackage", "-o", "fp32.mlpackage")
    mpsearch.Executor("fp32.mlpackage")


def test_the_front_shows_the_error_that_the_summary_shows():
    """Perturbed samples counted in the one and not in the other."""
    for case in ("flips:46", "mixed:42"):
        model, limit, given, _ = holds.inputs(case, 0, 16, 1)
        found = mpsearch.optimize(model, given, limit)
        assert found.met and found.kept
        error = dict(found.front)[len(found.fp32_ops)]
        assert error is not None and error <= limit


def test_a_trial_that_was_not_judged_anew_is_neither_met_nor_broken():
    sample = Sample(0, Kind.CALIBRATION, 0)
    trial = Trial(frozenset({1}), False, False, 1e-4, "propose", 1.0, 1)
    metric = resolve("rel_l2", False)
    assert rows.trial_row(trial, metric).met is None
    assert rows.trial_row(replace(trial, offenders=(sample,)), metric).met is False
    assert rows.trial_row(replace(trial, met=True, exact=True), metric).met is True


def test_a_check_on_drawn_inputs_promises_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.jit.trace(torch.nn.Linear(8, 4).eval(), torch.zeros(1, 8)).save("model.pt")
    run("optimize", "model.pt", "--budget", "1e-2")
    said = run("check", "model-mixed", "model.pt").output
    assert "None of 16 samples broke the budget." in said and "at least" not in said


def test_an_input_that_holds_nan_is_named():
    samples = [torch.ones(1, 8), torch.full((1, 8), math.nan)]
    with pytest.raises(mpsearch.InputError, match="sample 1: the input input holds NaN"):
        mpsearch.optimize(torch.nn.Linear(8, 4), samples, 1e-2)
