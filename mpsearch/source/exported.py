"""Opens exported programs (``.pt2``) without running code from them.

``torch.export.load`` runs what a file asks for in several ways: guards are compiled, shape
expressions go to sympy's ``eval``, pickled weights and compiled libraries are loaded, names of
values are written into generated Python, and a node may call anything that ``torch`` has as an
attribute. So the file is read once here, every entry of the archive and every string of the
program is held against what an export writes there, guards and all metadata but stack traces and
modules are left out, and torch is handed a new archive made of what was checked and of nothing
else.

The format is that of torch's ``torch/_export/serde/schema.py`` (schema version 8) and
``torch/export/pt2_archive``.
"""

from __future__ import annotations

import ast
import importlib
import io
import json
import keyword
import logging
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import InputError
from ..files import first_line
from ..isolated import LoadLimits, contained, tried
from ..memory import check_held
from ..temporary import TemporaryFolder
from .archives import archive_writer

_DESERIALIZER = "torch._export.serde.serialize"


class _RefusedError(Exception):
    """Something in the file is not what an export writes; the text says what."""


def load_exported(file: Path, trust: bool, limits: LoadLimits = LoadLimits()) -> Any:
    """The ``ExportedProgram`` in a ``.pt2`` file.

    Parameters
    ----------
    file
        As ``torch.export.save`` of torch 2.9 or newer wrote it.
    trust
        Load it as it is, whatever it runs.

    Raises
    ------
    InputError
        If it is no exported program, or, without ``trust``, holds anything that could run code or
        takes more than ``limits`` to open.
    """
    folder = TemporaryFolder()
    try:
        path = file if trust else folder.path / "checked.pt2"
        if not trust:
            importlib.import_module(_DESERIALIZER)  # once, and not in the child alone

            tried(_check, [str(file), str(path)], file, limits, _program_bytes(file))
        with contained():
            return torch.export.load(str(path))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{file} is no usable exported program: {first_line(error)}") from error
    finally:
        folder.close()


def _check(file: str, out: str) -> None:
    """Write what was checked, and see whether torch can read that."""
    try:
        with Path(out).open("wb") as checked:
            _copy_checked(Path(file), checked)
        with _told() as told:
            program = torch.export.load(out)
        tensors = {**program.state_dict, **program.constants}
        check_held({k: v for k, v in tensors.items() if isinstance(v, torch.Tensor)}, file)
    except _RefusedError as error:
        raise InputError(
            f"{file} {error}; pass --allow-pickle if you trust where it comes from"
        ) from error
    except (InputError, MemoryError):
        raise
    except Exception as error:
        # torch logs what was wrong, and raises an error that says so.
        why = told[-1] if told and "warnings above" in str(error) else first_line(error)
        raise InputError(f"{file} is no usable exported program: {why}") from error


@contextmanager
def _told() -> Iterator[list[str]]:
    """The warnings that torch logs within."""
    told: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage().splitlines()[0])  # type: ignore[method-assign]
    logger = logging.getLogger("torch.export")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    try:
        yield told
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _program_bytes(file: Path) -> int:
    with zipfile.ZipFile(file) as archive:
        return sum(i.file_size for i in archive.infolist() if i.filename.endswith(".json"))


# --- the archive -----------------------------------------------------------------------------

_WEIGHTS, _CONSTANTS = "data/weights/", "data/constants/"
_PROGRAM = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_CONFIGS = {
    f"{_WEIGHTS}model_weights_config.json": _WEIGHTS,
    f"{_CONSTANTS}model_constants_config.json": _CONSTANTS,
}
#: Entries that say what the archive is, or were added by the user, and nothing of the model.
_ABOUT = re.compile(r"archive_format|archive_version|byteorder|version|\.data/[\w.]+|extra/.*")
_RAW = re.compile(r"data/(weights/weight_|constants/tensor_)\d+")


def _copy_checked(file: Path, out: IO[bytes]) -> None:
    """Write to ``out`` the archive that torch is to load."""
    with zipfile.ZipFile(file) as archive:
        entries = _entries(archive)
        config = {name: _payload(_json(archive, entries, name), name) for name in _CONFIGS}
        program = _program(_json(archive, entries, _PROGRAM))
        samples = archive.read(entries[_SAMPLES]) if _SAMPLES in entries else None
        if samples is None:
            raise _RefusedError("is no exported program: it holds no data/sample_inputs/model.pt")
        samples = _tensors_alone(samples)
        with archive_writer(out) as write:
            write("archive_format", b"pt2")
            write("archive_version", b"0")
            for name, value in {_PROGRAM: program, **config}.items():
                write(name, json.dumps(value).encode())
            write(_SAMPLES, samples)
            for name, info in entries.items():
                if _RAW.fullmatch(name):
                    write(name, archive.read(info))


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The entries by name, without the folder that holds them all.

    torch takes the first folder's name off every entry, whatever that is.
    """
    found: dict[str, zipfile.ZipInfo] = {}
    roots = {info.filename.partition("/")[0] for info in archive.infolist()}
    if len(roots) != 1:
        raise _RefusedError("is no exported program of torch 2.9 or newer: export and save it anew")
    for info in archive.infolist():
        name = info.filename.partition("/")[2]
        if name in found:
            raise _RefusedError(f"holds the entry {name!r} twice")
        if not (
            name in (_PROGRAM, _SAMPLES)
            or name in _CONFIGS
            or _RAW.fullmatch(name)
            or _ABOUT.fullmatch(name)
        ):
            raise _RefusedError(f"holds the entry {name!r}, which could run code")
        found[name] = info
    return found


def _json(archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], name: str) -> Any:
    if name not in entries:
        raise _RefusedError(f"is no exported program: it holds no {name}")
    return json.loads(archive.read(entries[name]))


def _payload(config: Any, name: str) -> Any:
    """A configuration of weights or constants: raw tensors alone."""
    for key, entry in config["config"].items():
        _dotted(key)
        if entry["use_pickle"] or not _RAW.fullmatch(_CONFIGS[name] + entry["path_name"]):
            raise _RefusedError(f"holds {key!r} as a pickled object, which can run code")
    return _Checker().value(config, "config", free_keys=("config",))


def _tensors_alone(body: bytes) -> bytes:
    """Example inputs, written anew: torch would fall back to a full pickle for the bytes given."""
    try:
        found = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:
        raise _RefusedError("holds pickled example inputs, which can run code") from error
    out = io.BytesIO()
    torch.save(found, out)
    return out.getvalue()


# --- the program -----------------------------------------------------------------------------

#: Functions that nodes may call: ops of ATen, and arithmetic on sizes.
_TARGET = re.compile(
    r"torch\.ops\.(aten|prims)\.\w+\.\w+"
    r"|torch\.ops\.higher_order\.(cond|while_loop|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_"
    r"|not_|getitem|truth)"
    r"|math\.(ceil|floor|trunc|sqrt|pow|log2?|exp)"
    r"|torch\.sym_(int|float|max|min|not|sum|ite|sqrt)|torch\._sym_sqrt"
)
#: ATen's own ways to read and write files.
_FILE_OPS = ("save", "from_file")
#: ATen's operators on bits, whose names look like Python's own attributes.
_DUNDER_OPS = ("and", "or", "xor", "lshift", "rshift", "iand", "ior", "ixor", "ilshift", "irshift")
#: Text arguments of ops: modes, equations of einsum, what an assertion says. Generated code holds
#: them between quotes.
_TEXT = re.compile(r"[\w ,.<>=()'/*+:%\-]*")
#: Where modules and lines stand; text for people, which torch splits and never looks up.
_METADATA = ("stack_trace", "nn_module_stack")


def _program(program: Any) -> Any:
    """A program with what could run code refused, or left out where nothing depends on it."""
    program["guards_code"] = []
    program["graph_module"]["metadata"] = {}
    for entry in program["graph_module"]["module_call_graph"]:
        for key, keys in (("in_spec", _dotted), ("out_spec", _key)):
            if entry.get("signature"):
                _check_tree(json.loads(entry["signature"][key]), keys)
    return _Checker().value(program, "program")


class _Checker:
    """Walks decoded JSON and holds every string in it against what may stand there."""

    def __init__(self) -> None:
        self._strings: dict[str, Callable[[str], None]] = {
            "target": _target,
            "as_operator": _target,
            "expr_str": check_expression,
            "as_string": _text,
            "as_strings": _text,
            "in_spec": _anything,  # checked as trees beforehand
            "out_spec": _anything,
            "stack_trace": _anything,
            "nn_module_stack": _anything,
            "torch_version": _anything,
            "path_name": _name,
            "as_float": _number,
            "parameter_name": _dotted,
            "buffer_name": _dotted,
            "tensor_constant_name": _dotted,
            "fqn": _dotted,
            "treespec_namedtuple_fields": _dotted,
        }

    def value(self, value: Any, key: str, free_keys: tuple[str, ...] = ()) -> Any:
        """``value`` as it may be handed on; ``free_keys`` hold dicts by qualified name."""
        if isinstance(value, str):
            self._strings.get(key, _name)(value)
        elif isinstance(value, list):
            return [self.value(item, key, free_keys) for item in value]
        elif isinstance(value, dict):
            if key == "metadata":
                value = {k: v for k, v in value.items() if k in _METADATA}
            if "as_custom_obj" in value or "custom_obj" in value:
                raise _RefusedError("holds a custom object, which could run code")
            for name in value:
                if key == "range_constraints":
                    check_expression(name)
                    continue
                (_dotted if key in (*free_keys, "treespec_namedtuple_fields") else _name)(name)
            return {k: self.value(v, k, free_keys) for k, v in value.items()}
        return value


def _anything(_: str) -> None:
    return None


def _name(text: str) -> None:
    """A name that generated Python can hold and that looks up nothing."""
    if not re.fullmatch(r"\w*", text) or text.startswith("__") or keyword.iskeyword(text):
        raise _RefusedError(f"holds the name {text[:40]!r}, which would be run as code")


def _dotted(text: str) -> None:
    """A qualified name, such as that of a parameter."""
    for part in text.split("."):
        if not re.fullmatch(r"[\w\-]*", part) or part.startswith("__"):
            raise _RefusedError(f"holds the name {text[:40]!r}, which would be run as code")


def _target(text: str) -> None:
    parts = text.split(".")
    if (
        not _TARGET.fullmatch(text)
        or parts[-2] in _FILE_OPS
        or any(part.startswith("__") and part.strip("_") not in _DUNDER_OPS for part in parts)
    ):
        raise _RefusedError(f"calls {text[:60]!r}, which is no op of ATen")


def _text(text: str) -> None:
    if not _TEXT.fullmatch(text):
        raise _RefusedError(f"holds the argument {text[:40]!r}, which is no name of a mode")


def _number(text: str) -> None:
    if text not in ("Infinity", "-Infinity", "NaN"):
        raise _RefusedError(f"holds {text[:40]!r} where a number is expected")


def _key(text: str) -> None:
    """A key of a dict of outputs, which generated Python holds between quotes."""
    if not re.fullmatch(r"[\w .:/\-]*", text):
        raise _RefusedError(f"has an output named {text[:40]!r}, which would be run as code")


def _check_tree(spec: Any, keys: Callable[[str], None]) -> None:
    """The spec of a nested structure (torch.utils._pytree), whose contexts are JSON in JSON.

    Enums and default dicts name modules, which torch would import; keys of arguments become
    source text (torch.fx, ``gen_var_bindings``), and so every text is held against ``keys``.
    """
    if isinstance(spec, str):
        try:
            inner = json.loads(spec)
        except ValueError:
            keys(spec)
            return
        _check_tree(inner, keys)
    elif isinstance(spec, dict):
        if "__enum__" in spec or spec.get("type") == "collections.defaultdict":
            raise _RefusedError("has inputs or outputs of a type that is imported from elsewhere")
        for value in spec.values():
            _check_tree(value, keys)
    elif isinstance(spec, list):
        for item in spec:
            _check_tree(item, keys)


# --- shape expressions -----------------------------------------------------------------------

_FUNCTIONS = frozenset(
    [
        *("Integer", "Symbol", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CeilDiv"),
        *("CleanDiv", "Eq", "Ne", "Ge", "Gt", "Le", "Lt", "Abs", "And", "Or", "Not", "Add", "Mul"),
        *("Pow", "PowByNatural", "ModularIndexing", "ToFloat", "TruncToInt", "FloatTrueDiv"),
        *("IntTrueDiv", "RoundToInt", "RoundDecimal", "Identity", "Where", "FloorToInt"),
        *("CeilToInt", "floor", "ceiling", "Equality", "Unequality", "GreaterThan", "LessThan"),
        *("StrictGreaterThan", "StrictLessThan"),
    ]
)
_CONSTANT_NAMES = frozenset(["oo", "int_oo", "true", "false"])
_SYMBOL = re.compile(r"[suzf]\d+")
#: Characters of an expression, the largest number in it, the highest exponent, and bits of what
#: numbers in it make.
_LONGEST, _LARGEST, _HIGHEST, _BITS = 4096, 1 << 63, 16, 4096


def check_expression(text: str) -> None:
    """That a shape expression is arithmetic on sizes, which sympy may evaluate.

    Names are sizes (``s0``, ``u1``) and the functions that torch prints; powers have a small
    constant exponent; there are no attributes, subscripts, strings or keywords.
    """
    try:
        if len(text) > _LONGEST:
            raise ValueError
        _check_node(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise _RefusedError(
            f"has a shape expression that is no arithmetic ({text[:40]!r}) and would be evaluated "
            "as code"
        ) from error


def _check_node(node: ast.expr) -> None:
    """Raise ValueError where a node is none of the grammar's."""
    if _bits(node) > _BITS:
        raise ValueError
    if isinstance(node, ast.Constant):
        if not isinstance(node.value, (int, float)) or abs(node.value) > _LARGEST:
            raise ValueError
    elif isinstance(node, ast.Name):
        if not (_SYMBOL.fullmatch(node.id) or node.id in _CONSTANT_NAMES):
            raise ValueError
    elif isinstance(node, ast.UnaryOp):
        _check_node(node.operand)
    elif isinstance(node, ast.BinOp):
        _check_node(node.left)
        _check_node(node.right)
        if isinstance(node.op, (ast.LShift, ast.RShift, ast.MatMult)):
            raise ValueError
        if isinstance(node.op, ast.Pow):
            _check_exponent(node.right)
    elif isinstance(node, ast.Compare):
        for part in (node.left, *node.comparators):
            _check_node(part)
        if not all(
            isinstance(op, (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)) for op in node.ops
        ):
            raise ValueError
    elif isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS:
            raise ValueError
        if node.func.id == "Symbol":
            _check_symbol(node)
            return
        if node.keywords:
            raise ValueError
        for argument in node.args:
            _check_node(argument)
        if node.func.id in ("Pow", "PowByNatural"):
            _check_exponent(node.args[-1])
    else:
        raise ValueError


def _bits(node: ast.expr) -> float:
    """How many bits the number has that numbers make, at most; a size counts for one of 64."""
    parts = [_bits(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
    called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Pow):
            return parts[0] * _HIGHEST
        return sum(parts)
    if called in ("Pow", "PowByNatural"):
        return max(parts, default=0.0) * _HIGHEST
    if called in ("Mul", "Add"):
        return sum(parts)
    return max(parts, default=64.0 if isinstance(node, (ast.Constant, ast.Name)) else 0.0)


def _check_symbol(node: ast.Call) -> None:
    """``Symbol('s0', positive=True, integer=True)``."""
    name = node.args[0] if len(node.args) == 1 else None
    if not (isinstance(name, ast.Constant) and isinstance(name.value, str)):
        raise ValueError
    flags = [k.value for k in node.keywords]
    if not _SYMBOL.fullmatch(name.value) or not all(
        isinstance(flag, ast.Constant) and isinstance(flag.value, bool) for flag in flags
    ):
        raise ValueError


def _check_exponent(node: ast.expr) -> None:
    inner = node.operand if isinstance(node, ast.UnaryOp) else node
    value = inner.value if isinstance(inner, ast.Constant) else None
    if not isinstance(value, (int, float)) or abs(value) > _HIGHEST:
        raise ValueError
