"""FP32 packages as a source."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import msgspec
import torch

from .._ct import ct, quiet
from ..errors import InputError
from ..executor.predict import allows, as_pixels, declared_shapes
from ..options import TARGETS
from ..program import lowering as _program
from ..program.described import ORIGINS, unclassified
from .data import Data, is_picture
from .precast import Precast

with quiet():
    from coremltools.converters.mil.mil import types


#: Ops that are FP16 in an FP32 program too: states are FP16 in Core ML.
_HALF_ANYWAY = ("const", "cast", "read_state", "coreml_update_state")


def from_package(model: Any) -> Precast:
    """An FP32 ML Program as pre-cast program.

    Raises
    ------
    InputError
        If the package already holds ops typed FP16, or has several functions.
    """
    spec = model.get_spec()
    program = _program.load_program(spec, model.weights_dir)
    if not program.functions:
        raise InputError("the package has no function; convert the original again")
    check_functions(program.functions)
    (function,) = program.functions.values()
    classifier = unclassified(program)
    for op in function.operations:
        stored = op.op_type in _HALF_ANYWAY or op.op_type.startswith("constexpr_")
        half = any(types.is_tensor(v.sym_type) and v.dtype == types.fp16 for v in op.outputs)
        if half and not stored:
            raise InputError(
                f"the package is not FP32: op {op.name!r} is typed FP16; convert the original "
                "with compute_precision=ct.precision.FLOAT32"
            )
    declared = [_declared(feature) for feature in spec.description.input]
    target = {v: k for k, v in _spec_versions().items()}[function.opset_version.value]
    if any(d is not None for d in declared):
        (name,) = program.functions
        program.functions[name].set_input_types(
            tuple(
                d
                if d is not None
                else ct.TensorType(name=f.name, shape=tuple(f.type.multiArrayType.shape))
                for d, f in zip(declared, spec.description.input, strict=True)
            )
        )
    layer_of, line_of = _origins(spec.description.metadata.userDefined.get(ORIGINS, "{}"))
    return Precast(
        program,
        [],
        [],
        target,
        "mlpackage",
        layer_of,
        line_of,
        classifier=classifier,
        description=spec.description.SerializeToString(),
    )


def check_functions(names: Iterable[str]) -> None:
    """That a package has one function.

    Raises
    ------
    InputError
        If it has several.
    """
    names = list(names)
    if len(names) > 1:
        raise InputError(
            f"the package has several functions ({', '.join(names)}); convert each of them to a "
            "package of its own, and search that"
        )


Where = Callable[[Any], str]


def _origins(stored: str) -> tuple[Where, Where]:
    """Of an op its PyTorch layer, and its line, as far as the package holds them."""
    try:
        known = msgspec.json.decode(stored, type=dict[str, tuple[str, str]])
    except msgspec.DecodeError:  # somebody else's text: nothing is known
        known = {}
    nowhere = ("", "")
    return lambda op: known.get(op.name, nowhere)[0], lambda op: known.get(op.name, nowhere)[1]


def pixels(model: Any, data: Data) -> Data:
    """Samples with PIL images as the (1, C, H, W) arrays of 0 to 255 that a program takes."""
    pictures = {
        feature.name: feature.type.imageType
        for feature in model.get_spec().description.input
        if feature.type.WhichOneof("Type") == "imageType"
    }
    samples = [
        {
            name: data.spool.keep(torch.as_tensor(as_pixels(name, value, pictures[name]).copy()))
            if name in pictures and is_picture(value)
            else value
            for name, value in sample.items()
        }
        for sample in data.samples
    ]
    return replace(data, samples=samples)


def check_shapes(model: Any, data: Data) -> None:
    """That samples have shapes that a package declares.

    Raises
    ------
    InputError
        If one has another; it says which are declared.
    """
    arrays = {
        feature.name: feature
        for feature in model.get_spec().description.input
        if feature.type.WhichOneof("Type") == "multiArrayType"
    }
    for place, sample in enumerate(data.samples):
        for name, value in sample.items():
            if not isinstance(value, torch.Tensor) or name not in arrays:
                continue
            shape, feature = tuple(value.shape), arrays[name]
            declared = tuple(feature.type.multiArrayType.shape)
            if declared and not allows(feature, shape):
                raise InputError(
                    f"sample {place}: input {name!r} has shape {shape}, and the package takes "
                    f"{declared}{declared_shapes(shape, feature)}"
                )


def _spec_versions() -> dict[str, int]:
    return {name: getattr(ct.target, name).value for name in TARGETS}


def _declared(feature: Any) -> Any:
    """The declaration of an image or flexible input, None for a plain array."""
    kind = feature.type.WhichOneof("Type")
    if kind == "imageType":
        image = feature.type.imageType
        layout = {10: "GRAYSCALE", 20: "RGB", 30: "BGR", 40: "GRAYSCALE_FLOAT16"}[image.colorSpace]
        channels = 1 if layout.startswith("GRAY") else 3
        return ct.ImageType(
            name=feature.name,
            shape=(1, channels, image.height, image.width),
            color_layout=getattr(ct.colorlayout, layout),
            channel_first=True,
        )
    array = feature.type.multiArrayType
    if array.shapeRange.sizeRanges:
        sizes = [
            ct.RangeDim(int(r.lowerBound), int(r.upperBound), default=int(d))
            if r.lowerBound != r.upperBound
            else int(d)
            for r, d in zip(array.shapeRange.sizeRanges, array.shape, strict=True)
        ]
        return ct.TensorType(name=feature.name, shape=sizes)
    if array.enumeratedShapes.shapes:
        shapes = [tuple(int(n) for n in s.shape) for s in array.enumeratedShapes.shapes]
        default = tuple(int(n) for n in array.shape)
        return ct.TensorType(name=feature.name, shape=ct.EnumeratedShapes(shapes, default=default))
    return None
