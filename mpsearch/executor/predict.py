"""`Executor`: a stand-in for ``MLModel.predict`` on any machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._ct import ct, quiet
from ..errors import InputError
from ..numerics.choosing import Numerics, chosen
from ..program import lowering as _program
from ..program.graph import Function
from ..program.names import by_known_names
from ..program.packages import check_sizes, open_package
from .loop import Schedule
from .runtime import Runtime

with quiet():
    from coremltools.converters.mil.mil import Program, types

_NUMPY = {"fp16": np.float16, "fp32": np.float32, "bool": np.int32}


class State:
    """The states of a stateful model, as ``MLState`` holds them: name to array."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._arrays = arrays

    def _get(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            raise InputError(f"state {name!r} not found; there is {', '.join(self._arrays)}")
        return self._arrays[name]

    def read_state(self, name: str) -> np.ndarray:
        """A copy of the state ``name``."""
        return self._get(name).copy()

    def write_state(self, name: str, value: np.ndarray) -> None:
        """Set the state ``name``; the shape must be the state's own."""
        held = self._get(name)
        if np.shape(value) != held.shape:
            raise InputError(f"state {name!r} has shape {np.shape(value)}, expected {held.shape}")
        held[...] = value


class Executor:
    """Runs a Core ML ML Program on torch.

    Parameters
    ----------
    source
        An ``MLModel``, a MIL ``Program``, or the path of an ``.mlpackage``.
    numerics
        The numerics profile of ops typed FP16: ``ieee``, ``ane`` or ``strict``
        (see :mod:`mpsearch.numerics.profiles`).
    device
        A torch device: ``cpu``, ``cuda``, ``mps``.
    function_name
        Which function of a multi-function package to run; the model's default otherwise.

    Raises
    ------
    InputError
        If the source is missing or is not an ML Program.
    UnsupportedOpError
        If the program uses an op in a way that the executor does not know.

    Examples
    --------
    >>> executor = mpsearch.Executor("model.mlpackage")  # doctest: +SKIP
    >>> executor.predict({"x": np.zeros((1, 3), np.float32)})  # doctest: +SKIP
    """

    def __init__(
        self,
        source: Any,
        numerics: Numerics = "ieee",
        device: str | torch.device = "cpu",
        function_name: str | None = None,
    ) -> None:
        profile, *others = chosen(numerics)
        if others:
            raise InputError(
                f"numerics {numerics!r} names several profiles, expected one; "
                "make one Executor for each"
            )
        self._description: Any = None
        program, name = self._open(source, function_name)
        self._signature = program.functions[name]
        self._declared = {
            v.name: _NUMPY.get(_program.dtype_of(v), np.int32) for v in self._signature.outputs
        }
        self._function: Function = _program.lower(program, name)
        self._runtime = Runtime(profile, device)
        self._schedule = Schedule.of_function(self._function, states=True)

    # -- opening -------------------------------------------------------------------------------

    def _open(self, source: Any, function_name: str | None) -> tuple[Program, str]:
        if isinstance(source, Program):
            name = function_name or source.default_function_name
            if name not in source.functions:
                raise InputError(
                    f"function {name!r} not found; the program has {', '.join(source.functions)}"
                )
            return source, name
        if isinstance(source, (str, Path)):
            source = open_package(source)
        if not isinstance(source, ct.models.MLModel):
            raise InputError(
                f"cannot run a {type(source).__name__}; expected an MLModel, a MIL Program or "
                "the path of an .mlpackage"
            )
        spec = source.get_spec()
        kind = spec.WhichOneof("Type")
        if kind not in ("mlProgram", "pipeline"):
            raise InputError(
                f"the model is a {kind}, expected an ML Program; convert the original again with "
                "convert_to='mlprogram'"
            )
        name = function_name or source.function_name or spec.description.defaultFunctionName
        name = name or "main"
        self._description = spec.description
        if spec.description.functions:
            found = [f for f in spec.description.functions if f.name == name]
            if not found:
                known = ", ".join(f.name for f in spec.description.functions)
                raise InputError(f"function {name!r} not found; the model has {known}")
            self._description = found[0]
        program = source._mil_program
        if program is None or not self._agrees(program, name):
            check_sizes(spec)
            program = _program.load_program(spec, source.weights_dir)
        if name not in program.functions:
            known = ", ".join(program.functions) or "none"
            raise InputError(f"function {name!r} not found; the model has {known}")
        return program, name

    def _agrees(self, program: Program, name: str) -> bool:
        """Whether the program kept in memory still has the names of the specification."""
        if name not in program.functions:
            return False
        function = program.functions[name]
        described = {i.name for i in self._description.input}
        produced = {o.name for o in function.outputs}
        return described <= set(function.inputs) and {
            o.name for o in self._description.output
        } <= produced | {self._description.predictedFeatureName} | {
            self._description.predictedProbabilitiesName
        }

    # -- predicting ----------------------------------------------------------------------------

    def make_state(self) -> State:
        """A new state, all zeros, to be passed to :meth:`predict`, which updates it in place."""
        arrays = {}
        for name in self._function.states:
            wrapped = self._signature.inputs[name].sym_type.wrapped_type()
            dtype = types.builtin_to_string(wrapped.get_primitive())
            arrays[name] = np.zeros(wrapped.get_shape(), _NUMPY.get(dtype, np.int32))
        return State(arrays)

    def predict(self, data: Any, state: State | None = None) -> Any:
        """Predict, with the conventions of ``MLModel.predict``.

        Parameters
        ----------
        data
            A dict from input name to array, tensor, number or PIL image, or a list of such dicts.
            An input that coremltools has renamed may have its name in PyTorch: ``state`` for
            ``state_workaround``.
        state
            A state from :meth:`make_state`, where the model has states; updated in place.

        Returns
        -------
        dict or list of dict
            Output name to array (PIL image, string or dict for image and classifier outputs).

        Raises
        ------
        InputError
            If an input is missing, unknown, or of the wrong shape or type.
        """
        if isinstance(data, list):
            if state is not None:
                raise InputError("a state goes with one prediction, not with a list of them")
            return [self.predict(item) for item in data]
        if not isinstance(data, Mapping):
            raise InputError(
                f"predict takes a dict of inputs or a list of dicts, got {type(data).__name__}"
            )
        env = {
            self._function.inputs[name]: value.to(self._runtime.device)
            for name, value in self.bind(data).items()
        }
        for name, slot in self._function.states.items():
            if state is None:
                raise InputError(f"state {name!r} is missing; pass state=executor.make_state()")
            env[slot] = torch.from_numpy(state.read_state(name)).to(self._runtime.device)
        with torch.inference_mode():
            self._schedule.run(env, lambda step, values: self._runtime.run(step.node, values))
            out = {
                name: self._runtime.source(source, env)
                for name, source in self._function.outputs.items()
            }
            if state is not None:
                for name, source in self._function.state_outputs.items():
                    value = self._runtime.source(source, env)
                    state.write_state(name, value.cpu().numpy())
        return self._present(out)

    # -- inputs --------------------------------------------------------------------------------

    def bind(self, data: Mapping[str, Any]) -> dict[str, Tensor]:
        """The inputs as the program takes them, checked and with defaults filled in."""
        data = by_known_names(data, self._function.inputs)
        described = self._features()
        unknown = sorted(set(data) - set(self._function.inputs))
        if unknown:
            raise InputError(
                f"input {unknown[0]!r} is not known; the model takes "
                + ", ".join(self._function.inputs)
            )
        bound = {}
        for name in self._function.inputs:
            value = data.get(name)
            if value is None:
                value = _default(described.get(name))
            if value is None:
                raise InputError(f"input {name!r} is missing; expected {self._expected(name)}")
            bound[name] = self._convert(name, value, described.get(name))
        return bound

    def input_ranks(self) -> dict[str, int]:
        """The rank of every input."""
        return {n: len(self._signature.inputs[n].shape) for n in self._function.inputs}

    def fits(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether an input is declared to take arrays of a shape."""
        var, feature = self._signature.inputs[name], self._features().get(name)
        if is_flexible(feature):
            return allows(feature, shape)
        return len(shape) == len(var.shape) and all(
            not isinstance(s, (int, np.integer)) or s == n
            for s, n in zip(var.shape, shape, strict=True)
        )

    def _features(self) -> dict[str, Any]:
        """What the model says of its inputs, by name."""
        return {} if self._description is None else {i.name: i for i in self._description.input}

    def _expected(self, name: str) -> str:
        var = self._signature.inputs[name]
        shape = tuple(int(s) if isinstance(s, (int, np.integer)) else "?" for s in var.shape)
        return f"{_program.dtype_of(var)} of shape {shape}"

    def _convert(self, name: str, value: Any, feature: Any) -> Tensor:
        var = self._signature.inputs[name]
        if feature is not None and feature.type.WhichOneof("Type") == "imageType":
            value = as_pixels(name, value, feature.type.imageType)
        if isinstance(value, Tensor):
            value = value.detach().cpu().numpy()
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise InputError(f"input {name!r} is no array: {error}") from error
        if array.dtype.kind not in "fiub":
            raise InputError(
                f"input {name!r} is of type {array.dtype}, expected {self._expected(name)}"
            )
        if array.ndim == 0 and len(var.shape) == 1:
            array = array.reshape(1)
        if array.shape == (1,) and len(var.shape) == 0:
            array = array.reshape(())
        if not self.fits(name, array.shape):
            raise InputError(
                f"input {name!r} has shape {array.shape}, expected {self._expected(name)}"
                + declared_shapes(array.shape, feature)
            )
        dtype = _NUMPY.get(_program.dtype_of(var), np.int32)
        return torch.from_numpy(np.array(array, dtype=dtype, order="C"))

    # -- outputs -------------------------------------------------------------------------------

    def _present(self, values: dict[str, Any]) -> dict[str, Any]:
        described = (
            {} if self._description is None else {o.name: o for o in self._description.output}
        )
        out: dict[str, Any] = {}
        for name, value in values.items():
            feature = described.get(name)
            if isinstance(value, Tensor):
                array = value.cpu().numpy()
                if feature is not None and feature.type.WhichOneof("Type") == "imageType":
                    out[name] = _image(array, feature.type.imageType)
                    continue
                array = array.astype(self._declared[name], copy=False)
                # Core ML has no outputs of rank 0.
                out[name] = array.reshape(1) if array.ndim == 0 else array
            else:
                out[name] = value
        return out


def is_flexible(feature: Any) -> bool:
    """Whether a package declares an input of several shapes, in its description of it."""
    if feature is None or feature.type.WhichOneof("Type") != "multiArrayType":
        return False
    return feature.type.multiArrayType.WhichOneof("ShapeFlexibility") is not None


def allows(feature: Any, shape: tuple[int, ...]) -> bool:
    """Whether a shape is among those that a package declares of an array."""
    array = feature.type.multiArrayType
    listed = [tuple(s.shape) for s in array.enumeratedShapes.shapes] + [tuple(array.shape)]
    ranges = [(r.lowerBound, r.upperBound) for r in array.shapeRange.sizeRanges]
    return shape in listed or (
        len(ranges) == len(shape)
        and all(
            low <= n and (high < 0 or n <= high)
            for n, (low, high) in zip(shape, ranges, strict=True)
        )
    )


def declared_shapes(shape: tuple[int, ...], feature: Any) -> str:
    """What a flexible input allows and ``shape`` is not, in Core ML's own words."""
    if not is_flexible(feature):
        return ""
    array = feature.type.multiArrayType
    if array.enumeratedShapes.shapes:
        given = " x ".join(map(str, shape))
        listed = " or ".join(str(tuple(s.shape)) for s in array.enumeratedShapes.shapes)
        return f"; MultiArray Shape ({given}) was not in enumerated set of allowed shapes, {listed}"
    ranges = array.shapeRange.sizeRanges
    if len(ranges) == len(shape):
        for axis, (size, r) in enumerate(zip(shape, ranges, strict=True)):
            if size < r.lowerBound or 0 <= r.upperBound < size:
                allowed = f"{r.lowerBound}..{r.upperBound}"
                return f"; Size ({size}) of dimension ({axis}) is not in allowed range ({allowed})"
    return ""


def _default(feature: Any) -> Any:
    """The declared default of an optional input, None where there is none."""
    if feature is None or not feature.type.isOptional:
        return None
    array = feature.type.multiArrayType
    which = array.WhichOneof("defaultOptionalValue")
    return None if which is None else np.full(tuple(array.shape), getattr(array, which))


def as_pixels(name: str, value: Any, image: Any) -> np.ndarray:
    """A PIL image as the (1, C, H, W) array in 0..255 that the program takes."""
    from PIL import Image

    spaces = image.ColorSpace
    grey = image.colorSpace in (
        spaces.Value("GRAYSCALE"),
        spaces.Value("GRAYSCALE_FLOAT16"),
    )
    if not isinstance(value, Image.Image):
        raise InputError(f"input {name!r} is an image, expected a PIL.Image")
    if not grey and value.mode != "RGB":
        raise InputError(f"input {name!r} has mode {value.mode}, expected RGB")
    if (value.width, value.height) != (image.width, image.height) and not (
        image.WhichOneof("SizeFlexibility")
    ):
        raise InputError(
            f"input {name!r} is {value.width}x{value.height} pixels, expected "
            f"{image.width}x{image.height}"
        )
    pixels = np.asarray(value, dtype=np.float32)
    if grey:
        return pixels[None, None]
    channels = pixels.transpose(2, 0, 1)[None]
    return channels[:, ::-1] if image.colorSpace == spaces.Value("BGR") else channels


def _image(array: np.ndarray, image: Any) -> Any:
    from PIL import Image

    spaces = image.ColorSpace
    if image.colorSpace == spaces.Value("GRAYSCALE_FLOAT16"):
        return Image.fromarray(array[0, 0].astype(np.float32), "F")
    pixels = np.clip(np.round(array[0].astype(np.float32)), 0, 255).astype(np.uint8)
    if image.colorSpace == spaces.Value("GRAYSCALE"):
        return Image.fromarray(pixels[0], "L")
    if image.colorSpace == spaces.Value("BGR"):
        pixels = pixels[::-1]
    # Core ML hands out color images with an alpha channel.
    opaque = np.full_like(pixels[:1], 255)
    return Image.fromarray(np.concatenate([pixels, opaque]).transpose(1, 2, 0).copy(), "RGBA")
