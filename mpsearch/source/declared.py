"""What a model says of its inputs: their names, shapes and dtypes."""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._ct import ct
from ..errors import InputError
from ..program.names import known_name
from .data import argument_names, required_arguments
from .mlpackage import check_functions

#: Shape and dtype of an input.
Spec = tuple[tuple[int, ...], torch.dtype]
#: What stands beside a factory, and gives the inputs of one call.
_EXAMPLE = "example_inputs"
#: Bytes that the description of traced inputs takes at most.
_LONGEST = 1 << 20


def declared_inputs(
    model: Any, given: Sequence[str] = (), source: str = ""
) -> tuple[list[str] | None, int, dict[str, Spec]]:
    """A model's argument names, how many are required, and the shapes it declares.

    Packages declare them, exported programs and traced files hold those of their example inputs,
    and a factory may have ``example_inputs`` beside it: a tensor, a tuple or a dict, or a function
    that returns one.

    Parameters
    ----------
    given
        More shapes: ``name=1,3,224,224``, for integers ``name=1,8:int``. Without a dtype that which
        the model declares.
    source
        Where the model came from: a path, or ``package.module:factory``.

    Raises
    ------
    InputError
        If a given shape has another form.
    """
    names: list[str] | None
    if isinstance(model, ct.models.MLModel):
        shapes = _of_package(model)
        names, required = list(shapes), len(shapes)
        shapes = {name: spec for name, spec in shapes.items() if spec[0]}
    else:
        names, required = argument_names(model), required_arguments(model)
        values = _examples(model, source)
        found = (
            values.items() if isinstance(values, dict) else zip(names or [], values, strict=False)
        )
        shapes = {name: spec for name, value in found if (spec := _spec(value)) is not None}
    for text in given:
        typed, shape, dtype = _parsed(text)
        name = known_name(typed, names or [])
        known = shapes[name][1] if name in shapes else torch.float32
        shapes[name] = shape, dtype or known
    return names, required, shapes


def _of_package(model: Any) -> dict[str, Spec]:
    described = model.get_spec().description
    check_functions(function.name for function in described.functions)
    found: dict[str, Spec] = {}
    for feature in described.input:
        if feature.type.WhichOneof("Type") == "imageType":
            image = feature.type.imageType
            channels = 1 if image.colorSpace in (10, 40) else 3
            # Pixels are whole numbers, whatever the type of the input.
            found[feature.name] = (1, channels, image.height, image.width), torch.uint8
        else:
            array = feature.type.multiArrayType
            dtype = torch.int32 if array.dataType == array.INT32 else torch.float32
            found[feature.name] = tuple(int(size) for size in array.shape), dtype
    return found


def _examples(model: Any, source: str) -> Any:
    """The inputs of one call, in order or by name; empty where nothing says them."""
    if isinstance(model, torch.export.ExportedProgram):
        if model.example_inputs is None:
            return _placeholders(model)
        return [*model.example_inputs[0], *model.example_inputs[1].values()]
    if isinstance(model, torch.jit.ScriptModule):
        return _traced(Path(source)) if source and Path(source).is_file() else []
    beside = getattr(sys.modules.get(source.partition(":")[0]), _EXAMPLE, [])
    found = beside() if callable(beside) else beside
    return [found] if isinstance(found, Tensor) else found


def _placeholders(model: torch.export.ExportedProgram) -> list[Any]:
    """What an exported program was made with, as its graph describes it."""
    users = set(model.graph_signature.user_inputs)
    nodes = (node for node in model.graph.nodes if node.op == "placeholder" and node.name in users)
    return [node.meta.get("val") for node in nodes]


def _spec(value: Any) -> Spec | None:
    """The shape and dtype of an input; None for what is no tensor."""
    if isinstance(value, Tensor):
        return tuple(int(size) for size in value.shape), value.dtype
    return value if isinstance(value, _Traced) else None


def _parsed(text: str) -> tuple[str, tuple[int, ...], torch.dtype | None]:
    name, _, sizes = text.partition("=")
    sizes, _, kind = sizes.partition(":")
    try:
        shape = tuple(int(n) for n in sizes.split(","))
        if not name or kind not in ("", "int") or not all(0 < n < 1 << 31 for n in shape):
            raise ValueError
    except ValueError as error:
        raise InputError(
            f"--shape {text!r}: expected NAME=1,3,224,224, or NAME=1,8:int, of sizes above 0"
        ) from error
    return name, shape, torch.int64 if kind == "int" else None


# -- traced files ---------------------------------------------------------------------------------


#: What a storage's name says.
_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}


class _Traced(tuple[Any, ...]):
    """The shape and dtype of a traced input."""


def _traced(file: Path) -> list[Any]:
    """What a TorchScript file was traced with; empty where it was not traced, or does not say."""
    try:
        with zipfile.ZipFile(file) as archive:
            (entry,) = [i for i in archive.infolist() if i.filename.endswith("/traced_inputs.pkl")]
            if entry.file_size > _LONGEST:
                return []
            found = _Shapes(io.BytesIO(archive.read(entry))).load()
        inputs = found["forward"]
        return list(inputs) if isinstance(inputs, (list, tuple)) else []
    except Exception:  # whatever a file holds in its place
        return []


class _Shapes(pickle.Unpickler):
    """Reads tensors as shapes and dtypes; it makes nothing else, and calls nothing of the file."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a global."""
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return lambda value, _: value
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda dtype, _, size, *more: _Traced((tuple(map(int, size)), dtype))
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise pickle.UnpicklingError(f"{module}.{name} does not describe a tensor")

    def persistent_load(self, pid: Any) -> Any:
        """The dtype of a storage."""
        return pid[1]
