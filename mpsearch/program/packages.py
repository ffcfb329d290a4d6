"""Opens ``.mlpackage`` folders, after a look at where they would read and how much they would make.

A package names its own parts in ``Manifest.json``, and coremltools follows those names, links
included. Ops whose result is as large as a constant says are computed while a program is read.
"""

from __future__ import annotations

import math
import os
import shutil
import stat
import weakref
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from .._ct import ct, quiet
from ..errors import InputError
from ..files import read_json
from ..isolated import LoadLimits, contained, tried
from ..memory import MOST_ELEMENTS
from ..temporary import TemporaryFolder
from ..usercode import reason
from .lowering import load_program

#: Ops whose result is as large as the values of these inputs say.
_SIZED_BY_VALUE = {"fill": "shape", "tile": "reps", "range_1d": "end"}


def open_package(path: str | Path, limits: LoadLimits | None = LoadLimits()) -> Any:
    """The ``MLModel`` of an ``.mlpackage``, not loaded into Core ML.

    Without ``limits`` it is not tried first: for packages that this process has written.

    Raises
    ------
    InputError
        If the path does not exist, does not hold an ML Program, leads out of itself, or takes more
        than ``limits`` to open.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; give the path of an .mlpackage")
    if limits is not None:
        tried(_check, [str(path)], path, limits)
    with contained():
        return _opened(path)


def _check(path: str) -> None:
    """That a package can be read, and is an ML Program that asks for no more than it may."""
    _check_package(Path(path))


def _check_package(path: Path) -> None:
    try:
        if path.is_dir():
            _check_parts(path)
        elif not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{path} is a pipe or a device; give the path of an .mlpackage")
        with quiet():
            model = _opened(path)
            spec = model.get_spec()
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{path} is not a Core ML model: {reason(error)}") from error
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram":
        raise InputError(
            f"{path} is a {kind} model, expected an ML Program (.mlpackage); convert the "
            "original again with convert_to='mlprogram'"
        )
    if not spec.description.output and not spec.description.functions:
        raise InputError(f"{path} has no outputs; convert the original again")
    try:
        check_sizes(spec)
        load_program(spec, model.weights_dir)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _opened(path: Path) -> Any:
    """The ``MLModel`` of a path that is only read: coremltools writes the manifest anew.

    So it is given a folder of ours, with the manifest copied and the data linked, that stays as
    long as the model does.
    """
    if not path.is_dir():
        return ct.models.MLModel(str(path), skip_model_load=True)
    shadow = TemporaryFolder()
    copy = shadow.path / "model.mlpackage"
    copy.mkdir()
    shutil.copyfile(path / "Manifest.json", copy / "Manifest.json")
    (copy / "Data").symlink_to((path / "Data").resolve(), target_is_directory=True)
    model = ct.models.MLModel(str(copy), skip_model_load=True)
    model._mpsearch_shadow = shadow
    return model


def owned(model: Any) -> Any:
    """An ``MLModel`` whose temporary package goes with it; coremltools keeps it until the end."""
    if model.is_temp_package:
        weakref.finalize(model, shutil.rmtree, model.package_path, ignore_errors=True)
    return model


def _unlisted(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be listed: {error.strerror}; make it readable")


def _check_parts(path: Path) -> None:
    """That a package holds plain files alone, and that its manifest names some of them."""
    for folder, folders, files in os.walk(path, onerror=_unlisted):
        for part in (Path(folder, name) for name in (*folders, *files)):
            mode = part.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise InputError(
                    f"{path} holds {part.relative_to(path)}, which is a link, a pipe or a device; "
                    "copy the package with its files"
                )
    manifest = read_json(path / "Manifest.json", "an .mlpackage, which holds a Manifest.json")
    try:
        names = [entry["path"] for entry in manifest["itemInfoEntries"].values()]
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} is not a Core ML model: its Manifest.json lists no parts"
        ) from error
    for name in names:
        if (
            not isinstance(name, str)
            or PurePosixPath(name).is_absolute()
            or ".." in name.split("/")
        ):
            raise InputError(f"{path} names {name!r} as a part, which lies outside of it")
        if not (path / "Data" / name).exists():
            raise InputError(f"{path} lacks its part {name!r}; copy the whole package")


def check_sizes(spec: Any) -> None:
    """That no op of a program makes more than 1 GiB of a few constants.

    Raises
    ------
    InputError
        If one does.
    """
    for block in _blocks(spec.mlProgram):
        constants = {
            op.outputs[0].name: op.attributes["val"]
            for op in block.operations
            if op.type == "const" and op.outputs
        }
        for op in block.operations:
            wanted = _SIZED_BY_VALUE.get(op.type)
            if wanted is None or wanted not in op.inputs:
                continue
            count = 1.0
            for argument in op.inputs[wanted].arguments:
                value = argument.value if argument.WhichOneof("binding") == "value" else None
                value = constants.get(argument.name) if value is None else value
                count *= math.prod(_numbers(value)) if value is not None else 1
            if abs(count) > MOST_ELEMENTS:
                raise InputError(
                    f"op {op.outputs[0].name!r} of type {op.type} makes {count:,.0f} elements, "
                    f"expected at most {MOST_ELEMENTS:,}; such a program is not read"
                )


def _numbers(value: Any) -> list[float]:
    tensor = value.immediateValue.tensor
    kind = tensor.WhichOneof("value")
    if kind == "bytes":  # int16 and the like, which no size needs
        return []
    return (
        [float(v) for v in getattr(tensor, kind).values]
        if kind in ("ints", "floats", "longInts")
        else []
    )


def _blocks(program: Any) -> Iterator[Any]:
    def inner(block: Any) -> Iterator[Any]:
        yield block
        for op in block.operations:
            for child in op.blocks:
                yield from inner(child)

    for function in program.functions.values():
        for block in function.block_specializations.values():
            yield from inner(block)
