"""Runs packages with Core ML, on a Mac or on an iPhone attached to it.

The one place that talks to Core ML. No Mac was at hand when it was written: what it calls is
checked against a stand-in, and has not been run on one.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import numpy as np

from .._ct import ct
from ..errors import InputError
from ..files import first_line
from ..options import COMPUTE_UNITS

T = TypeVar("T")


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
        if platform.system() != "Darwin":
            raise InputError(
                f"Core ML runs on a Mac, and this is {platform.system()}; run this there, or leave "
                "it to mpsearch's own executor"
            )
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
    """A package in Core ML."""

    def __init__(self, device: CoreML, model: Any) -> None:
        self._device = device
        spec, weights = model.get_spec(), model.weights_dir
        self.stateful = bool(spec.description.state)
        if device.phone is None:
            self.model = ct.models.MLModel(spec, weights_dir=weights, compute_units=device.units)
            return
        from coremltools.models.ml_program.experimental.async_wrapper import MLModelAsyncWrapper

        if self.stateful:
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
            elif self.stateful:
                found = self.model.predict(dict(inputs), state=self.model.make_state())
            else:
                found = self.model.predict(dict(inputs))
        except Exception as error:  # whatever Core ML raises
            raise InputError(f"Core ML cannot predict: {first_line(error)}") from error
        return {name: np.asarray(value) for name, value in found.items()}
