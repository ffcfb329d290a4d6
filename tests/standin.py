"""A stand-in for Core ML: looks at how it is called, and answers as a numerics profile computes.

No Mac is at hand. What coremltools' own classes take is checked against their signatures.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import coremltools as ct
import numpy as np
from coremltools.models.compute_device import MLCPUComputeDevice, MLNeuralEngineComputeDevice
from coremltools.models.ml_program.experimental import debugging_utils, perf_utils

import mpsearch

Real = ct.models.MLModel
_DTYPES = {"FLOAT32": np.float32, "FLOAT16": np.float16, "INT32": np.int32}


class _AnyMLModel(type):
    """Models made before Core ML was stood in for count as well."""

    def __instancecheck__(cls, instance):
        return type.__instancecheck__(Real, instance)


class CoreMLStandIn(Real, metaclass=_AnyMLModel):
    """An ``MLModel`` that predicts where it was loaded."""

    profile: object = "ieee"
    #: (compute units, number of predictions) of every model that was loaded.
    loaded: list[CoreMLStandIn] = []

    def __init__(self, model, weights_dir=None, compute_units=ct.ComputeUnit.ALL, **options):
        assert isinstance(compute_units, ct.ComputeUnit)
        self.in_core_ml = not options.pop("skip_model_load", False)
        super().__init__(
            model,
            weights_dir=weights_dir,
            compute_units=compute_units,
            skip_model_load=True,
            **options,
        )
        self.predictions = 0
        if self.in_core_ml:
            type(self).loaded.append(self)

    def _executor(self):
        if not hasattr(self, "_mpsearch_executor"):
            self._mpsearch_executor = mpsearch.Executor(self, self.profile)
        return self._mpsearch_executor

    def make_state(self):
        return self._executor().make_state()

    def predict(self, data, state=None):
        assert self.in_core_ml, "predict of a model that was not loaded"
        description = self.get_spec().description
        assert set(data) == {feature.name for feature in description.input}
        for feature in description.input:
            array = feature.type.multiArrayType
            wanted = _DTYPES[array.ArrayDataType.Name(array.dataType)]
            assert isinstance(data[feature.name], np.ndarray)
            assert data[feature.name].dtype == wanted, (feature.name, data[feature.name].dtype)
            assert data[feature.name].shape == tuple(array.shape)
        assert (state is not None) == bool(description.state)
        self.predictions += 1
        return self._executor().predict(data, state)


def _bound(function, *args, **kwargs):
    """The arguments as the real function takes them; fails where it would."""
    return inspect.signature(function).bind(None, *args, **kwargs).arguments


class Benchmarker:
    """In the place of ``MLModelBenchmarker``."""

    real = perf_utils.MLModelBenchmarker
    Statistics, Measurement = real.Statistics, real.Measurement

    def __init__(self, *args, **kwargs):
        self.model = _bound(self.real.__init__, *args, **kwargs)["model"]

    async def benchmark_load(self, *args, **kwargs):
        _bound(self.real.benchmark_load, *args, **kwargs)
        return self.real.Measurement.from_samples([3.0, 5.0, 4.0])

    async def benchmark_predict(self, *args, **kwargs):
        self.model.predict(_bound(self.real.benchmark_predict, *args, **kwargs)["inputs"])
        return self.real.Measurement.from_samples([1.0, 2.0, 3.0])

    async def benchmark_operation_execution(self, *args, **kwargs):
        _bound(self.real.benchmark_operation_execution, *args, **kwargs)
        (function,) = self.model.get_spec().mlProgram.functions.values()
        (block,) = function.block_specializations.values()
        found = []
        for place, spec in enumerate(op for op in block.operations if op.type != "const"):
            kind = MLNeuralEngineComputeDevice if spec.type == "linear" else MLCPUComputeDevice
            usage = SimpleNamespace(preferred_compute_device=object.__new__(kind))
            measurement = self.real.Measurement.from_samples([float(place)])
            found.append(self.real.OperationExecutionInfo(spec, None, usage, measurement))
        return found


class Comparator:
    """In the place of ``MLModelComparator``: looks at outputs alone."""

    real = debugging_utils.MLModelComparator

    def __init__(self, *args, **kwargs):
        given = _bound(self.real.__init__, *args, **kwargs)
        self.reference, self.target = given["reference_model"], given["target_model"]
        assert self.reference.compute_unit is ct.ComputeUnit.CPU_ONLY

    async def find_failing_ops(self, *args, **kwargs):
        given = _bound(self.real.find_failing_ops, *args, **kwargs)
        a = self.reference.predict(given["inputs"])
        b = self.target.predict(given["inputs"])
        failing = [
            name
            for one, (name, other) in zip(a.values(), b.items(), strict=True)
            if not given["compare_outputs"](None, one, other)
        ]
        return [SimpleNamespace(outputs=[SimpleNamespace(name=name)]) for name in failing]


def install(monkeypatch, profile="ieee"):
    """Have mpsearch believe that it is on a Mac, whose Core ML computes as ``profile``."""
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.mac_ver", lambda: ("26.1", ("", "", ""), "arm64"))
    monkeypatch.setattr(CoreMLStandIn, "profile", profile)
    monkeypatch.setattr(CoreMLStandIn, "loaded", [])
    monkeypatch.setattr(ct.models, "MLModel", CoreMLStandIn)
    monkeypatch.setattr(perf_utils, "MLModelBenchmarker", Benchmarker)
    monkeypatch.setattr(debugging_utils, "MLModelComparator", Comparator)
