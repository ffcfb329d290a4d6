"""Runs packages with Core ML, on a Mac or on an iPhone attached to it.

The one place that talks to Core ML. No Mac was at hand when it was written: what it calls is
checked against a stand-in, and has not been run on one.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from .._ct import ct
from ..errors import InputError
from ..files import first_line
from ..options import COMPUTE_UNITS

T = TypeVar("T")


def check_mac() -> None:
    """Fail early where there is no Core ML.

    Raises
    ------
    InputError
        Off a Mac.
    """
    if platform.system() != "Darwin":
        raise InputError(
            f"Core ML runs on a Mac, and this is {platform.system()}; run this there, or leave it "
            "to mpsearch's own executor"
        )


class CoreML:
    """Core ML with some compute units.

    Parameters
    ----------
    units
        One of :data:`mpsearch.options.COMPUTE_UNITS`; those that are named may compute, and which
        of them does is Core ML's choice.
    team
        Development team of Apple's, by which coremltools signs the app that it puts on the first
        iPhone that is attached; None: this Mac computes.

    Raises
    ------
    InputError
        Off a Mac, and where no iPhone is attached or it cannot be made ready.
    """

    def __init__(self, units: str = "CPU_AND_NE", team: str | None = None) -> None:
        if units not in COMPUTE_UNITS:
            raise InputError(f"compute units {units!r}: choose from {', '.join(COMPUTE_UNITS)}")
        check_mac()
        self.units = getattr(ct.ComputeUnit, units)
        self._runner = asyncio.Runner()
        self.phone: Any = None if team is None else self._attached(team)

    def _attached(self, team: str) -> Any:
        from coremltools.models.ml_program.experimental.remote_device import (
            AppSigningCredentials,
            Device,
            DeviceType,
        )

        try:
            found = Device.get_connected_devices(DeviceType.IPHONE)
            if not found:
                raise InputError("no iPhone is attached; attach one in developer mode, unlocked")
            credentials = AppSigningCredentials(
                development_team=team, bundle_identifier=None, provisioning_profile_uuid=None
            )
            return self.wait(found[0].prepare_for_model_debugging(credentials=credentials))
        except InputError:
            raise
        except Exception as error:  # whatever Xcode's tools say
            raise InputError(f"the iPhone cannot be made ready: {first_line(error)}") from error

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """What a coroutine of coremltools' gives."""
        return self._runner.run(work)

    @property
    def about(self) -> dict[str, str]:
        """What computes, for people."""
        found = {"compute units": self.units.name, "coremltools": ct.__version__}
        if self.phone is None:
            return {"machine": platform.machine(), "macOS": platform.mac_ver()[0], **found}
        return {"device": str(self.phone.name), "iOS": str(self.phone.os_version), **found}

    @property
    def name(self) -> str:
        """What computes, in a few words."""
        about = self.about
        return " ".join([*list(about.values())[:2], about["compute units"]]).replace(",", ".")

    def load(self, model: Any) -> Loaded:
        """A package, ready to predict.

        Parameters
        ----------
        model
            An ``MLModel``, loaded into Core ML or not.

        Raises
        ------
        InputError
            If Core ML refuses it.
        """
        try:
            return Loaded(self, model)
        except Exception as error:  # whatever Core ML raises
            raise InputError(f"Core ML cannot load the package: {first_line(error)}") from error

    def close(self) -> None:
        """Let go of the device."""
        self._runner.close()


class Loaded:
    """A package in Core ML.

    Attributes
    ----------
    package
        The ``MLModel``.
    inputs, states
        Their names.
    """

    def __init__(self, device: CoreML, model: Any) -> None:
        self._device = device
        spec, weights = model.get_spec(), model.weights_dir
        self.inputs = tuple(feature.name for feature in spec.description.input)
        self.states = tuple(feature.name for feature in spec.description.state)
        self.package = ct.models.MLModel(
            spec,
            weights_dir=weights,
            compute_units=device.units,
            skip_model_load=device.phone is not None,
        )
        self.model: Any = self.package
        if device.phone is None:
            return
        from coremltools.models.ml_program.experimental.async_wrapper import MLModelAsyncWrapper

        if self.states:
            raise InputError("coremltools predicts with states on Macs alone; leave --iphone out")
        self.model = MLModelAsyncWrapper.from_spec_or_path(
            spec_or_path=spec,
            weights_dir=weights,
            compute_units=device.units,
            device=device.phone,
        )
        device.wait(self.model.load())

    def predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name; states start anew.

        Raises
        ------
        InputError
            If Core ML fails.
        """
        try:
            if self._device.phone is not None:
                found = self._device.wait(self.model.predict(dict(inputs)))
            elif self.states:
                found = self.model.predict(dict(inputs), state=self.model.make_state())
            else:
                found = self.model.predict(dict(inputs))
        except Exception as error:  # whatever Core ML raises
            raise InputError(f"Core ML cannot predict: {first_line(error)}") from error
        return {name: np.asarray(value) for name, value in found.items()}

    def timed(self, inputs: Mapping[str, np.ndarray], iterations: int = 10) -> Timing:
        """How long it takes, and which device runs each op.

        By ``MLModelBenchmarker``, whose plan of devices is that of ``MLComputePlan``.

        Raises
        ------
        InputError
            If Core ML fails.
        """
        from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker

        device, given = self._device, dict(inputs)
        try:
            benchmark = MLModelBenchmarker(self.package, device=device.phone)
            load = device.wait(benchmark.benchmark_load(iterations=3))
            predict = device.wait(
                benchmark.benchmark_predict(inputs=given, iterations=iterations, warmup=True)
            )
            found = device.wait(
                benchmark.benchmark_operation_execution(
                    inputs=given, iterations=iterations, warmup=True
                )
            )
        except Exception as error:  # whatever Core ML raises
            raise InputError(f"Core ML cannot be timed: {first_line(error)}") from error
        return Timing(
            load.statistics.median,
            predict.statistics.median,
            tuple(
                (
                    op.spec.outputs[0].name if op.spec.outputs else "",
                    op.spec.type,
                    _preferred(op.compute_device_usage),
                    None if op.measurement.statistics is None else op.measurement.statistics.median,
                )
                for op in found
            ),
        )

    def parted(
        self,
        reference: Any,
        inputs: Mapping[str, np.ndarray],
        agree: Callable[[np.ndarray, np.ndarray], bool],
    ) -> tuple[str, ...]:
        """The ops whose inputs agree with those of ``reference`` and whose outputs do not.

        By ``MLModelComparator``; the reference runs on this Mac's CPU.

        Raises
        ------
        InputError
            If Core ML fails.
        """
        from coremltools.models.ml_program.experimental.debugging_utils import MLModelComparator

        try:
            comparator = MLModelComparator(
                reference_model=ct.models.MLModel(
                    reference.get_spec(),
                    weights_dir=reference.weights_dir,
                    compute_units=ct.ComputeUnit.CPU_ONLY,
                ),
                target_model=self.package,
                target_device=self._device.phone,
            )
            found = self._device.wait(
                comparator.find_failing_ops(
                    inputs=dict(inputs), compare_outputs=lambda _, a, b: agree(a, b)
                )
            )
        except Exception as error:  # whatever Core ML raises
            raise InputError(f"Core ML cannot compare: {first_line(error)}") from error
        return tuple(op.outputs[0].name for op in found if op.outputs)


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a package takes.

    Attributes
    ----------
    load, predict
        Milliseconds, the median.
    ops
        Name, type, device and milliseconds of each op.
    """

    load: float
    predict: float
    ops: tuple[tuple[str, str, str, float | None], ...]


#: What coremltools calls the devices, by the beginning of its classes' names.
_DEVICES = {"MLCPU": "CPU", "MLGPU": "GPU", "MLNeuralEngine": "Neural Engine"}


def _preferred(usage: Any) -> str:
    if usage is None:
        return ""
    name = type(usage.preferred_compute_device).__name__
    return next((said for start, said in _DEVICES.items() if name.startswith(start)), name)
