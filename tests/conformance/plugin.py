"""A pytest plugin that runs coremltools' own tests with mpsearch in the place of Core ML.

Off a Mac those tests build and convert every model, then skip the comparison of numbers, since
nothing can predict. This plugin puts :class:`mpsearch.Executor` behind ``MLModel.predict`` and
``MLModel.make_state`` and tells coremltools that it is on a Mac, which turns the comparisons on.
Tests of the old neural-network backend are left out: mpsearch runs ML Programs.

Tests listed in ``expected_failures.txt`` are marked as expected to fail, with the reason given
there; a listed test that passes is reported, so that the list cannot outlive its causes.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import random
import re
import sys
import types
import weakref
from pathlib import Path
from typing import Any, ClassVar

import pytest

# Read by coremltools' test modules when they are imported.
os.environ.setdefault("PYMIL_TEST_TARGETS", "mlprogram")

from mpsearch import Executor
from mpsearch._ct import ct
from mpsearch.errors import MpsearchError

MACOS = (15, 4)
HERE = Path(__file__).parent

_executors: weakref.WeakKeyDictionary[Any, Executor] = weakref.WeakKeyDictionary()
_predicted: set[str] = set()
_ended: list[int] = []
_current = ""


def _executor(model: Any) -> Executor:
    """An executor in the numerics of what the test asks for.

    All tests ask for the CPU, which computes ops typed FP16 in FP32 (Core ML's "Typed Execution").
    Tests of FP16 models compare with wide tolerances, so they run in ``ieee``, which is harder;
    tests of FP32 models compare to 1e-4, also where the model holds ops typed FP16.
    """
    if model not in _executors:
        fp32 = "precision='fp32'" in _current or "'fp32'" in _current
        # A few tests predict with a neural network in passing: its MIL program stands for it.
        program = model.get_spec().WhichOneof("Type") == "mlProgram"
        source = model if program else model._mil_program
        _executors[model] = Executor(source, numerics="wide" if fp32 else "ieee")
    return _executors[model]


def _predict(self: Any, data: Any, state: Any = None) -> Any:
    self._check_predict_data(data)
    for given in data if isinstance(data, list) else [data]:
        self._verify_input_dict(given)  # coremltools' own checks, made before Core ML is called
    _predicted.add(_current)
    try:
        return _executor(self).predict(data, state)
    except (MpsearchError, IndexError) as error:
        # What Core ML's bindings raise, and tests look for.
        raise RuntimeError(f"Unable to compute the prediction using ML Program: {error}") from error


def _make_state(self: Any) -> Any:
    return _executor(self).make_state()


def _pretend_to_be_a_mac() -> None:
    import coremltools._deps
    import coremltools.models.model
    import coremltools.models.utils

    coremltools._deps._IS_MACOS = True
    for module in (coremltools.models.utils, coremltools.models.model):
        module._is_macos = lambda: True
        module._macos_version = lambda: MACOS
    ct.models.MLModel.predict = _predict
    ct.models.MLModel.make_state = _make_state


_pretend_to_be_a_mac()


class _Missing:
    """A name from a missing package: may be passed about, not used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return _Missing(f"{self._name}.{name}")

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        pytest.skip(f"{self._name} is not installed")


class _Absent(types.ModuleType):
    """Lets modules that import a missing package be collected; what uses it is skipped."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(f"{self.__name__}.{name}")


for _package in ("torchvision", "peft", "torchsr", "timm"):
    if importlib.util.find_spec(_package) is None:
        sys.modules[_package] = _Absent(_package)


def _expected_failures() -> list[tuple[re.Pattern[str], str]]:
    """Lines of "pattern of test ids  # reason"; * stands for anything."""
    out = []
    for line in (HERE / "expected_failures.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            pattern, _, reason = line.partition("  # ")
            out.append((re.compile(".*".join(map(re.escape, pattern.strip().split("*")))), reason))
    return out


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--sample", type=int, default=0, help="run this many tests, chosen at random")
    group.addoption("--sample-seed", type=int, default=None, help="seed of --sample")
    group.addoption("--tally", default="", help="append outcomes as JSON lines to this file")
    group.addoption("--resume", action="store_true", help="leave out tests that --tally holds")


def pytest_configure(config: pytest.Config) -> None:
    # One seed for all workers of pytest-xdist, or each would collect other tests.
    seed = config.getoption("--sample-seed")
    if seed is None:
        seed = int(
            os.environ.setdefault(
                "MPSEARCH_SAMPLE_SEED", str(random.SystemRandom().randrange(10**6))
            )
        )
    config.stash[_SEED] = seed


_SEED = pytest.StashKey[int]()


def pytest_report_header(config: pytest.Config) -> str:
    return (
        f"conformance: sample {config.getoption('--sample') or 'all'}, seed {config.stash[_SEED]}"
    )


def _is_neural_network(item: pytest.Item) -> bool:
    return "neuralnetwork" in item.nodeid


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    dropped = [item for item in items if _is_neural_network(item)]
    kept = [item for item in items if not _is_neural_network(item)]
    if config.getoption("--resume") and os.path.exists(config.getoption("--tally")):
        with open(config.getoption("--tally")) as file:
            done = {json.loads(line)["test"] for line in file}
        dropped += [item for item in kept if item.nodeid in done]
        kept = [item for item in kept if item.nodeid not in done]
    count = config.getoption("--sample")
    if count and count < len(kept):
        kept.sort(key=lambda item: item.nodeid)
        chosen = set(random.Random(config.stash[_SEED]).sample(range(len(kept)), count))
        dropped += [item for i, item in enumerate(kept) if i not in chosen]
        kept = [item for i, item in enumerate(kept) if i in chosen]
    expected = _expected_failures()
    for item in kept:
        for pattern, reason in expected:
            if pattern.search(item.nodeid):
                item.add_marker(pytest.mark.xfail(reason=reason, strict=False))
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


def pytest_collection_finish() -> None:
    # coremltools collects garbage in every conversion, and would look at thousands of collected
    # tests each time: a third of the whole run.
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    global _current
    _current = item.nodeid
    return (yield)


def pytest_runtest_teardown() -> None:
    _ended.append(1)
    if len(_ended) % 50 == 0:  # what tests leave behind is looked at each time as well
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    report = yield
    path = item.config.getoption("--tally")
    if path and (report.when == "call" or (report.outcome != "passed" and report.when == "setup")):
        line = {
            "test": item.nodeid,
            "outcome": report.outcome,
            "expected": bool(getattr(report, "wasxfail", False)),
            "predicted": item.nodeid in _predicted,
            "error": str(call.excinfo.value)[:300] if call.excinfo else "",
            "type": call.excinfo.type.__name__ if call.excinfo else "",
        }
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")
    return report
