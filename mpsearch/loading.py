"""Opens model files without running code from them."""

from __future__ import annotations

import contextlib
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ._ct import quiet
from .errors import InputError
from .metrics import import_callable
from .predict import open_package

#: Names that may stand in the shape expressions of an exported program, which torch hands to
#: sympy, which evaluates them as Python.
_SHAPE_WORDS = re.compile(r"[A-Za-z_]\w*")
_SHAPE_ALLOWED = re.compile(
    r"[suzf]\d+|Integer|Symbol|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|Eq|Ne|Ge|Gt|Le|Lt"
    r"|Abs|And|Or|Not|Add|Mul|Pow|True|False|oo|int_oo|positive|integer|ModularIndexing|ToFloat"
    r"|TruncToInt|FloatTrueDiv|IntTrueDiv|RoundToInt|Identity|Where|FloorToInt|CeilToInt|PowByNatural"
)


def load_model(path: str, weights: str | None = None, allow_pickle: bool = False) -> Any:
    """The model that ``path`` names.

    Parameters
    ----------
    path
        A TorchScript file, an exported program (``.pt2``), a pickled ``nn.Module``, an
        ``.mlpackage``, or ``package.module:factory``.
    weights
        A state dict (``.pt`` or ``.safetensors``) for the module that a factory returns.
    allow_pickle
        Allow pickles, which can run any code.

    Returns
    -------
    nn.Module, ScriptModule, ExportedProgram or MLModel

    Raises
    ------
    InputError
        If there is no such file, it holds no model, or it needs ``allow_pickle``.
    """
    if ":" in path and not Path(path).exists():
        return _from_factory(path, weights)
    if weights is not None:
        raise InputError(
            f"--weights goes with package.module:factory, not with a file ({path}); a model file "
            "carries its own weights"
        )
    file = Path(path)
    if not file.exists():
        raise InputError(
            f"{path} does not exist; give a model file, an .mlpackage or package.module:factory"
        )
    if file.suffix in (".mlpackage", ".mlmodel") or file.is_dir():
        return open_package(file)
    if not zipfile.is_zipfile(file):
        return _pickled(file, allow_pickle, legacy=True)
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    if any("/code/" in n and n.endswith(".py") for n in names):
        return _torchscript(file)
    if any(n.endswith(".json") and "/models/" in n for n in names) or (
        "serialized_exported_program.json" in names
    ):
        return _exported(file, allow_pickle)
    if any(n.endswith("data.pkl") for n in names):
        return _pickled(file, allow_pickle)
    raise InputError(
        f"{path} is not a model; expected a TorchScript file, a .pt2, a pickled module or an "
        ".mlpackage"
    )


def _from_factory(path: str, weights: str | None) -> nn.Module:
    factory = import_callable(path, "model")
    try:
        model = factory()
    except Exception as error:
        raise InputError(f"model {path!r}: the factory failed: {_first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model {path!r} returned a {type(model).__name__}, expected a torch.nn.Module"
        )
    if weights is not None:
        try:
            model.load_state_dict(_state_dict(weights))
        except RuntimeError as error:
            raise InputError(
                f"weights {weights} do not fit the model: {_first_line(error)}"
            ) from error
    return model


def _state_dict(path: str) -> dict[str, torch.Tensor]:
    if not Path(path).exists():
        raise InputError(f"weights {path} do not exist; give a .pt or .safetensors state dict")
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"weights {path} are no state dict: {_first_line(error)}") from error
    if not isinstance(loaded, dict):
        raise InputError(f"weights {path} hold a {type(loaded).__name__}, expected a state dict")
    return loaded


def _torchscript(file: Path) -> Any:
    try:
        with quiet():
            return torch.jit.load(str(file), map_location="cpu")
    except Exception as error:
        raise InputError(f"{file} is no usable TorchScript file: {_first_line(error)}") from error


def _exported(file: Path, allow_pickle: bool) -> Any:
    if not allow_pickle:
        _check_shape_expressions(file)
    try:
        with quiet(), contextlib.nullcontext() if allow_pickle else _no_pickle():
            return torch.export.load(str(file))
    except _PickleRefusedError as error:
        raise InputError(
            f"{file} holds pickled objects, which can run code; pass --allow-pickle if you trust "
            "where it comes from"
        ) from error
    except Exception as error:
        raise InputError(f"{file} is no usable exported program: {_first_line(error)}") from error


class _PickleRefusedError(Exception):
    """A file needs full pickles."""


@contextlib.contextmanager
def _no_pickle() -> Iterator[None]:
    """torch.export.load falls back to full pickles where tensors alone do not do: refuse that."""
    load, loads = torch.load, pickle.loads

    def tensors_only(f: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["weights_only"] = True
        try:
            return load(f, *args, **kwargs)
        except pickle.UnpicklingError as error:
            raise _PickleRefusedError from error

    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise _PickleRefusedError

    torch.load, pickle.loads = tensors_only, refuse
    try:
        yield
    finally:
        torch.load, pickle.loads = load, loads


def _check_shape_expressions(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if not name.endswith(".json"):
                continue
            text = archive.read(name).decode("utf-8", "replace")
            for expression in re.findall(r'"(?:expr_str|as_expr)"\s*:\s*"((?:[^"\\]|\\.)*)"', text):
                words = _SHAPE_WORDS.findall(expression)
                if not all(_SHAPE_ALLOWED.fullmatch(word) for word in words):
                    raise InputError(
                        f"{file} has a shape expression that is no arithmetic "
                        f"({expression[:40]!r}) and would be evaluated as code; pass "
                        "--allow-pickle if you trust where it comes from"
                    )


def _pickled(file: Path, allow_pickle: bool, legacy: bool = False) -> nn.Module:
    if not allow_pickle:
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if legacy and not _looks_pickled(file):
                raise InputError(
                    f"{file} is not a model; expected a TorchScript file, a .pt2, a pickled "
                    "module or an .mlpackage"
                ) from error
            raise InputError(
                f"{file} is a pickled module, and loading it can run any code; pass "
                "--allow-pickle if you trust where it comes from, or save it with "
                "torch.jit.save or torch.export.save"
            ) from error
        except Exception as error:
            raise InputError(f"{file} is not a model: {_first_line(error)}") from error
    else:
        try:
            with quiet():
                loaded = torch.load(file, map_location="cpu", weights_only=False)
        except Exception as error:
            raise InputError(f"{file} cannot be unpickled: {_first_line(error)}") from error
    if isinstance(loaded, nn.Module):
        return loaded
    if isinstance(loaded, dict):
        raise InputError(
            f"{file} is a state dict, not a model; give package.module:factory and --weights {file}"
        )
    raise InputError(f"{file} holds a {type(loaded).__name__}, expected a torch.nn.Module")


def _looks_pickled(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(1) == b"\x80"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
