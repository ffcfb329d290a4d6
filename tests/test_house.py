"""How the house is built: what passes through how many files, what a study and a result hold."""

from __future__ import annotations

import math
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import mpsearch
from mpsearch.evaluation.evaluator import Evaluator
from mpsearch.numerics.profiles import PROFILES, Profile
from mpsearch.results import result as results
from tests.models import batches, net
from tests.planted import Planted, budget, samples


def test_the_model_passes_through_few_files():
    """Counted in the frames of mpsearch that hold the very object that the caller gave."""
    model, seen = net(), set()

    def profile(frame, event, _):
        file = frame.f_code.co_filename
        ours = event == "call" and "/mpsearch/" in file
        if ours and any(value is model for value in frame.f_locals.values()):
            seen.add(file)

    sys.setprofile(profile)
    try:
        mpsearch.optimize(model, batches(), 1e-2)
    finally:
        sys.setprofile(None)
    assert 0 < len(seen) <= 12, sorted(seen)


def test_what_is_installed_is_all_there_is():
    """The packages and the files in them, as pyproject.toml lists them, beside those on disk."""
    root = Path(__file__).parents[1]
    if not (root / "strategies").exists():
        pytest.skip("the wheel is tested, and there is no source beside it")
    tool = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        package: root / tool["package-dir"].get(package, package.replace(".", "/"))
        for package in tool["packages"]
    }
    made = {path.parent for path in (root / "mpsearch").rglob("*.py")} | {root / "strategies"}
    assert set(folders.values()) == made
    listed = {
        file
        for package, globs in tool["package-data"].items()
        for glob in globs
        for file in folders[package].glob(glob)
    }
    other = {file for folder in made for file in folder.iterdir() if file.is_file()}
    assert listed == {file for file in other if file.suffix not in (".py", ".pyc")}


def test_a_search_does_not_load_torchs_compiler():
    """It takes seconds and 25 MB, and nothing here is compiled."""
    code = (
        "import sys, mpsearch; from tests.models import batches, net\n"
        "mpsearch.optimize(net(), batches(), 1e-2)\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False)
    assert done.returncode == 0


def test_every_evaluation_is_a_trial_of_the_study(monkeypatch):
    original, evaluated, evaluators = Evaluator.evaluate, [], []

    def evaluate(self, precision, *args, **kwargs):
        evaluators.append(self)
        if self is evaluators[0]:  # the hint about --rescale asks another, of another program
            evaluated.append(len(precision))
        return original(self, precision, *args, **kwargs)

    losses = Evaluator.losses

    def looked_at(self, precision, *args, **kwargs):  # on the samples that are not searched on
        evaluated.append(len(precision))
        return losses(self, precision, *args, **kwargs)

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    monkeypatch.setattr(Evaluator, "losses", looked_at)
    tolerant = mpsearch.Constraints(tolerate_overflow=True)
    found = mpsearch.optimize(Planted(0), samples(0), budget(0), heldout=0.0, constraints=tolerant)
    trials = [t for t in found.study.trials if "fp32_ops" in t.user_attrs]  # the others: repeats
    every = len(trials[0].user_attrs["fp32_ops"])  # run while ranges are measured
    assert [len(t.user_attrs["fp32_ops"]) for t in trials] == [every, *evaluated]
    assert every == found.candidate_ops
    passes = {t.user_attrs["pass"] for t in trials}
    assert {"ends", "cast", "prune", "bound"} <= passes
    best = min(
        (t for t in trials if t.constraints["budget"] <= 0 and t.user_attrs["exact"]),
        key=lambda t: (t.value, t.user_attrs["loss"]),
    )
    assert best.value == len(found.fp32_ops)


def test_what_is_measured_of_a_kept_op_alone_is_a_trial_too():
    found = mpsearch.optimize(net(), batches(), 1e-2)
    trials = [t.user_attrs for t in found.study.trials if t.user_attrs.get("pass") == "alone"]
    every = {row.name for row in found.ops}
    assert {op.name for op in found.kept} == {(every - {*t["fp32_ops"]}).pop() for t in trials}
    assert all(len(t["fp32_ops"]) == found.candidate_ops - 1 for t in trials)


def test_a_study_is_named_by_what_it_is_about(tmp_path):
    def name(seed=0, limit=1e-3, **options):
        found = mpsearch.optimize(Planted(seed), samples(seed), limit, **options)
        return found.study.study_name

    first = name()
    assert name(limit=1e-2) == first  # the same evaluations answer it
    assert len({first, name(seed=1), name(numerics="strict"), name(metric="max_abs")}) == 4
    stored = mpsearch.Execution(storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert [name(execution=stored), name(execution=stored)] == [first, f"{first} (2)"]


def test_a_result_is_frozen_and_comes_back_from_json(tmp_path):
    found = mpsearch.optimize(Planted(0), samples(0), budget(0))
    with pytest.raises(AttributeError):
        found.error = 0.0
    out = found.save(tmp_path / "out")
    again = results.read(out / "result.json")
    assert again == found
    assert again.error_fp16 == found.error_fp16 == math.inf
    assert again.study is None and again.config is None
    analysis = mpsearch.analyze(Planted(0), samples(0))
    assert mpsearch.Analysis.from_dict(analysis.as_dict()) == analysis
    checked = mpsearch.check(out, Planted(0), samples(0))
    assert mpsearch.CheckResult.from_dict(checked.as_dict()) == checked


def test_options_are_written_to_the_config_as_they_are(tmp_path):
    constraints = mpsearch.Constraints(keep_fp32=["type:linear"], minimize="casts")
    limits = mpsearch.Limits(trials=40, timeout=600)
    execution = mpsearch.Execution(seed=3, cache_bytes=1 << 20)
    found = mpsearch.optimize(
        net(), batches(), 1e-2, constraints=constraints, limits=limits, execution=execution
    )
    config = found.config
    assert (config.constraints, config.limits, config.execution) == (constraints, limits, execution)
    assert config.conversion == mpsearch.Conversion(io_dtype="fp32")


@pytest.mark.parametrize(
    ("group", "given", "message"),
    [
        ("Conversion", {"target": "iOS14"}, "iOS15, iOS16"),
        ("Conversion", {"states": "keys"}, "list of texts"),
        ("Constraints", {"by": "block"}, "op, layer"),
        ("Constraints", {"minimize": "watts"}, "casts"),
        ("Limits", {"trials": 0}, "1 or more"),
        ("Limits", {"timeout": -1}, "seconds above 0"),
        ("Execution", {"seed": -1}, "from 0"),
    ],
)
def test_a_wrong_option_is_one_line(group, given, message):
    with pytest.raises(mpsearch.InputError, match=message):
        getattr(mpsearch, group)(**given)


def test_a_group_of_the_wrong_kind_says_what_was_expected():
    with pytest.raises(mpsearch.InputError, match=r"limits is a dict; expected mpsearch.Limits"):
        mpsearch.optimize(net(), batches(), 1e-2, limits={"trials": 3})


def test_a_strategy_and_a_profile_may_be_the_callers_own():
    class Coarse(Profile):
        """FP16 results with their last bits gone."""

        name = "coarse"

        def run(self, op_type, function, arguments, out_dtypes, fp16):
            results_ = super().run(op_type, function, arguments, out_dtypes, fp16)
            if not fp16:
                return results_
            return tuple(
                torch.round(r.float() * 64) / 64 if torch.is_floating_point(r) else r
                for r in results_
            )

    asked = []

    def drop(problem):
        kept = problem.everything
        for unit in sorted(kept, reverse=True):
            asked.append(unit)
            if problem.try_(kept - {unit}, "drop").met:
                kept = kept - {unit}

    found = mpsearch.optimize(net(), batches(), 1e-3, strategy=drop, numerics=["ieee", Coarse()])
    plain = mpsearch.optimize(net(), batches(), 1e-3)
    assert asked and {t.asked_by for t in found.trials} >= {"ends", "drop"}
    assert found.error_fp16 > plain.error_fp16
    assert found.config.numerics == "ieee,coarse" and found.config.strategy == "drop"


def test_profiles_are_all_offered():
    assert list(PROFILES) == list(mpsearch.options.PROFILES)
    assert np.all([PROFILES[name].name == name for name in PROFILES])
