"""Opens model files without running code from them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._ct import ct, quiet
from ..errors import InputError
from ..files import MODEL_FILE, check_archive, first_line, is_archive, regular
from ..isolated import LoadLimits, contained, tried
from ..program.packages import open_package
from ..usercode import guarded, import_callable, import_from_here
from .exported import load_exported
from .modules import unwrapped
from .scripted import load_scripted

_KINDS = (
    "a TorchScript file, a .pt2, a pickled module, an .mlpackage, or package.module:factory for "
    "Python code"
)


def load_model(
    path: str,
    weights: str | None = None,
    allow_pickle: bool = False,
    limits: LoadLimits = LoadLimits(),
) -> Any:
    """The model that ``path`` names.

    Parameters
    ----------
    path
        A TorchScript file, an exported program (``.pt2``), a pickled ``nn.Module``, an
        ``.mlpackage``, or ``package.module:factory``.
    weights
        A state dict (``.pt`` or ``.safetensors``) for the module that a factory returns.
    allow_pickle
        Allow files that can run any code: pickles, and exported programs and TorchScript as they
        are.
    limits
        What opening a file may take; with ``allow_pickle`` there are none.

    Returns
    -------
    nn.Module, ScriptModule, ExportedProgram or MLModel

    Raises
    ------
    InputError
        If there is no such file, it holds no model, or it needs ``allow_pickle``.
    """
    if ":" in path and not Path(path).exists():
        return _from_factory(path, weights, limits)
    if weights is not None:
        raise InputError(
            f"--weights goes with package.module:factory, not with a file ({path}); a model file "
            "carries its own weights"
        )
    file = Path(path)
    if file.suffix in (".mlpackage", ".mlmodel") or file.is_dir():
        return open_package(file, limits)
    regular(file, MODEL_FILE)
    if not is_archive(file):
        return _pickled(file, allow_pickle, limits, legacy=True)
    check_archive(file)
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    if any("/code/" in n.lower() and n.endswith(".py") for n in names):
        return load_scripted(file, allow_pickle, limits)
    if any("/models/" in n and n.endswith(".json") for n in names) or (
        "serialized_exported_program.json" in names
    ):
        return load_exported(file, allow_pickle, limits)
    if any(n.endswith("data.pkl") for n in names):
        return _pickled(file, allow_pickle, limits)
    raise InputError(f"{path} is not a model; expected {_KINDS}")


def _from_factory(path: str, weights: str | None, limits: LoadLimits) -> Any:
    factory = import_callable(path, "model")
    with guarded(f"model {path!r}: the factory"):
        model = unwrapped(factory())
    if not isinstance(model, (nn.Module, torch.export.ExportedProgram, ct.models.MLModel)):
        raise InputError(
            f"model {path!r} returned a {type(model).__name__}, expected a torch.nn.Module"
        )
    if weights is None:
        return model
    if not isinstance(model, nn.Module):
        raise InputError(
            f"--weights {weights} goes with a torch.nn.Module; {path!r} returned a "
            f"{type(model).__name__}, which carries its own"
        )
    state = _state_dict(weights, limits)
    try:
        model.load_state_dict(state)
    except Exception as error:
        said = " ".join(str(error).split())
        raise InputError(f"weights {weights} do not fit the model: {said}") from error
    return model


def _state_dict(path: str, limits: LoadLimits) -> dict[str, torch.Tensor]:
    file = regular(path, "a .pt or .safetensors state dict")
    if is_archive(file):
        check_archive(file)
    try:
        tried(_check_state_dict, [path], file, limits)
        with contained():
            loaded = _read_state_dict(path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"weights {path} are no state dict: {first_line(error)}") from error
    if not isinstance(loaded, dict):
        raise InputError(f"weights {path} hold a {type(loaded).__name__}, expected a state dict")
    return loaded


def _read_state_dict(path: str) -> Any:
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    # Mapped, not read: the model takes what it needs, and converts it, tensor by tensor.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive(Path(path)))


def _check_state_dict(path: str) -> None:
    try:
        _read_state_dict(path)
    except MemoryError:
        raise
    except Exception as error:
        raise InputError(f"weights {path} are no state dict: {first_line(error)}") from error


def _pickled(file: Path, allow_pickle: bool, limits: LoadLimits, legacy: bool = False) -> nn.Module:
    if not allow_pickle:
        tried(_refuse_pickled, [str(file), legacy], file, limits)
    import_from_here()
    with guarded(f"{file}: unpickling it"), quiet():
        loaded = torch.load(file, map_location="cpu", weights_only=False)
    if isinstance(loaded, nn.Module):
        return loaded
    raise _no_module(file, loaded)


def _no_module(file: Path, loaded: Any) -> InputError:
    if isinstance(loaded, dict):
        return InputError(
            f"{file} is a state dict, not a model; give package.module:factory and --weights {file}"
        )
    return InputError(f"{file} holds a {type(loaded).__name__}, expected a torch.nn.Module")


def _refuse_pickled(path: str, legacy: bool) -> None:
    """Say what a file that is no archive of a model holds: what is read without code is none."""
    file = Path(path)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if legacy and not _looks_pickled(file):
            raise InputError(f"{file} is not a model; expected {_KINDS}") from error
        raise InputError(
            f"{file} is a pickled module, and loading it can run any code; pass "
            "--allow-pickle if you trust where it comes from, or save it with "
            "torch.jit.save or torch.export.save"
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        raise InputError(f"{file} is not a model: {first_line(error)}") from error
    raise _no_module(file, loaded)


def _looks_pickled(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(1) == b"\x80"
